"""Statistics of the real images that generated ones are compared with."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from rfdit.eval.metrics.moments import FeatureMoments
from rfdit.eval.networks.feature_network import FeatureNetwork


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Statistics of a set of real images through one feature network.

    Fields that a file from elsewhere does not give are None.

    network, weights_sha256, resize, precision: those of the `FeatureNetwork`.
    data: the source of the images, in words.
    data_sha256: checksum of the images' bytes in order; of the file, for one from elsewhere.
    image_size: (height, width) of the images.
    moments: moments over all images, by output of the network.
    features: features of those images whose features were kept, by output of the network.
    """

    network: str
    weights_sha256: str | None
    resize: str | None
    precision: str | None
    data: str
    data_sha256: str
    image_size: tuple[int, int] | None
    moments: Mapping[str, FeatureMoments]
    features: Mapping[str, Float[Tensor, "n d"]] = field(default_factory=dict)

    def check(self, network: FeatureNetwork, image_size: tuple[int, int]) -> None:
        """Raises ValueError for another network, other weights or another image size.

        Warns of another resize or precision.
        """
        if self.network != network.name:
            raise ValueError(
                f"eval.reference was made with {self.network}, and the features are {network.name}'s; "
                "make one with rfdit reference"
            )
        if self.weights_sha256 not in (None, network.sha256):
            raise ValueError(
                f"eval.reference was made with weights {str(self.weights_sha256)[:12]} of {self.network}, and "
                f"network.weights has {network.sha256[:12]} (SHA-256); use the same file for both"
            )
        if self.image_size not in (None, image_size):
            sizes = [" x ".join(map(str, size)) for size in (self.image_size or (), image_size)]
            raise ValueError(
                f"eval.reference has images of {sizes[0]}, and the evaluation has images of {sizes[1]}; "
                f"make one with rfdit reference resolution={image_size[0]}"
            )
        for name in ("resize", "precision"):
            ours, theirs = getattr(self, name), getattr(network, name)
            if ours not in (None, theirs):
                warnings.warn(
                    f"eval.reference was made with {name} {ours!r}, and the network here has {theirs!r}",
                    stacklevel=2,
                )

    def moments_of(self, output: str, *, needed_by: str) -> FeatureMoments:
        """Moments of an output; raises ValueError, naming the metric, if the reference does not have them."""
        if output not in self.moments:
            raise ValueError(
                f"{needed_by} needs the moments of {output}, and the reference ({self.data}) has those of "
                f"{', '.join(self.moments) or 'nothing'}"
            )
        return self.moments[output]

    def features_of(self, output: str, *, needed_by: str) -> Float[Tensor, "n d"]:
        """Features of an output; raises ValueError, naming the metric, if they were not kept."""
        if output not in self.features:
            raise ValueError(
                f"{needed_by} compares images one by one and needs the features {output}, which the reference "
                f"({self.data}) did not keep; make one with rfdit reference features=N"
            )
        return self.features[output]

    def settings(self) -> dict[str, str | int | list[int] | None]:
        """The reference as the protocol of an evaluation records it."""
        counts = [moments.count for moments in self.moments.values()]
        return {
            "name": self.data,
            "sha256": self.data_sha256,
            "images": counts[0] if counts else None,
            "image_size": None if self.image_size is None else list(self.image_size),
            "weights_sha256": self.weights_sha256,
            "resize": self.resize,
            "precision": self.precision,
            "features_kept": max(map(len, self.features.values()), default=0),
        }
