"""A feature network without weights to load, and references of any features."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from rfdit.eval.metrics.moments import FeatureMoments
from rfdit.eval.networks.feature_network import check_images
from rfdit.eval.reference.reference import Reference


class TinyFeatures(nn.Module):
    """Mean colours of a coarse grid, as every output."""

    name, sha256, resize = "tiny", "0" * 64, "area to 2 x 2"

    def __init__(
        self, *, outputs: Sequence[str] = ("pool",), weights: str | None = None, precision: str = "fp32"
    ) -> None:
        super().__init__()
        self.outputs, self.precision = tuple(outputs), precision

    def forward(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        check_images(images)
        grid = adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return dict.fromkeys(self.outputs, grid)


def reference_of(features: Mapping[str, Tensor], /, **changes: Any) -> Reference:
    """Moments and features, as if `TinyFeatures` had made them of 8 x 8 images."""
    about: dict[str, Any] = {
        "network": "tiny",
        "weights_sha256": "0" * 64,
        "resize": "area to 2 x 2",
        "precision": "fp32",
        "data": "drawn",
        "data_sha256": "1" * 64,
        "image_size": (8, 8),
        "moments": {output: FeatureMoments.of(x) for output, x in features.items()},
        "features": features,
    }
    return Reference(**(about | changes))
