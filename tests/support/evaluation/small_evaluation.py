"""An evaluation that costs next to nothing: features are a fixed projection of a small image."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from rfdit.eval.metrics.moments import FeatureMoments
from rfdit.eval.protocol import EvalProtocol
from rfdit.eval.reference.files import save_reference
from rfdit.eval.reference.reference import Reference

WIDTH = 6


class TinyFeatures(nn.Module):
    """A `FeatureNetwork`. Like those that load weights, it draws some first."""

    name, sha256, resize = "tiny", "f" * 64, "8 x 8 means"

    def __init__(self, *, weights: str | None, outputs: tuple[str, ...], precision: str) -> None:
        super().__init__()
        self.outputs, self.precision = outputs, precision
        torch.rand(7)
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("weight", torch.randn(3 * 8 * 8, WIDTH, generator=generator) / 14)

    def forward(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        small = F.adaptive_avg_pool2d(images.float() / 255 - 0.5, 8)
        return {"pool": small.flatten(1) @ self.weight}


def write_reference(path: Path, *, image_size: tuple[int, int] = (32, 32), images: int = 40) -> Path:
    """Write the reference statistics of images of noise."""
    noise = torch.randint(0, 256, (images, 3, *image_size), generator=torch.Generator().manual_seed(6))
    features = TinyFeatures(weights=None, outputs=("pool",), precision="fp32")(noise.to(torch.uint8))["pool"]
    reference = Reference(
        network="tiny",
        weights_sha256="f" * 64,
        resize="8 x 8 means",
        precision="fp32",
        data="noise",
        data_sha256="e" * 64,
        image_size=image_size,
        moments={"pool": FeatureMoments.of(features)},
        features={"pool": features},
    )
    save_reference(reference, path)
    return path


def tiny_eval(reference: Path | str, *, samples: int = 22, inputs: str = "shapes") -> list[str]:
    """Overrides for train.py and sample.py. KID and precision keep all features, FID does not."""
    return [
        "eval=quick", f"eval/inputs={inputs}", f"eval.samples={samples}", f"eval.reference={reference}",
        "eval.network._target_=tests.support.evaluation.small_evaluation.TinyFeatures", "eval.network.outputs=[pool]",
        "eval.metrics.sfid=null",
        "+eval.metrics.kid={_target_: rfdit.eval.metrics.kernel.KernelInceptionDistance, subsets: 3, subset_size: 10}",
        "+eval.metrics.pr={_target_: rfdit.eval.metrics.manifold.PrecisionRecall}",
        *(["eval.inputs.shards.samples=64"] if inputs == "shapes" else []),
    ]  # fmt: skip


PROTOCOL = EvalProtocol(
    metrics={"fid": {"name": "FrechetDistance", "features": "pool"}},
    features={"name": "inception", "sha256": "ab" * 32, "resize": "tensorflow"},
    reference={"name": "emoji", "sha256": "cd" * 32},
    samples=50_000,
    image_size=[32, 32],
    inputs={"name": "labels", "order": "balanced", "classes": 10},
    sampler={"solver": {"name": "Euler"}, "grid": {"name": "UniformGrid"}, "shift": 1.0},
    steps=25,
    evaluations=50.0,
    guidance={"name": "ClassifierFree", "scale": 3.0},
    precision="bf16",
    weights={"name": "ema", "profile": "FixedDecay", "decay": 0.9999},
    seed=0,
)
