"""What turns images into the features that metrics compare."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

# fp32: throughout. tf32: fp32 whose products are rounded on the way in, where the GPU does so.
PRECISIONS = ("fp32", "tf32", "bf16")


@runtime_checkable
class FeatureNetwork(Protocol):
    """A frozen network; computes only the outputs it was built for.

    name: of the network, without its weights.
    sha256: of its weights' file.
    resize: how images come to the network's size, in words.
    precision: its arithmetic, one of `PRECISIONS`.
    outputs: what a call returns, in the network's own names, such as ("pool", "spatial").
    """

    name: str
    sha256: str
    resize: str
    precision: str
    outputs: tuple[str, ...]

    def to(self, device: torch.device) -> "FeatureNetwork":
        """Moves it."""
        ...

    def __call__(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        """float32 features by output, on the images' device, without gradients."""
        ...


@runtime_checkable
class CaptionNetwork(FeatureNetwork, Protocol):
    """A feature network that puts captions into the space of its images."""

    def captions(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """One unit vector a caption, to compare with the output `image`."""
        ...


def check_images(images: Tensor) -> None:
    """Raises ValueError for what is no batch of RGB bytes, so that nothing is converted by a guess."""
    if images.dtype != torch.uint8:
        nan = " with NaN or infinity" if images.is_floating_point() and not images.isfinite().all() else ""
        raise ValueError(
            f"images are {images.dtype}{nan}, and feature networks take bytes; rfdit.images.to_uint8 converts"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images have the shape {tuple(images.shape)}, and feature networks take RGB, (b, 3, H, W); "
            "repeat a grey channel three times, put transparent ones on a background"
        )


def check_finite(features: Float[Tensor, "b d"], output: str) -> None:
    """Raises ValueError if a feature is NaN or infinite, which would make the whole number so."""
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(f"{bad} of {len(features)} images have features ({output}) that are NaN or infinite")


def check_precision(precision: str) -> None:
    """Raises ValueError for what is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"network.precision={precision} is unknown; use {', '.join(PRECISIONS)}")


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Products of float32 numbers as `precision` says, whatever training has set; no autocast, no gradients."""
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    cudnn.allow_tf32 = precision != "fp32"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


def weights_dtype(precision: str) -> torch.dtype:
    """What a network's weights are in."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
