"""Frozen networks that turn images into the features that metrics compare, and what they share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from rfdit.device import constant

# fp32: throughout. tf32: fp32 whose products the GPU rounds to TF32 on the way in, where it can.
PRECISIONS = ("fp32", "tf32", "bf16")


@runtime_checkable
class FeatureNetwork(Protocol):
    """A frozen network that computes only the outputs it was built for.

    name: name of the architecture, without its weights.
    sha256: checksum of the file of weights.
    resize: the way in which images are brought to the network's size, in words, for the protocol.
    precision: one of `PRECISIONS`.
    outputs: the keys of what a call returns, such as ("pool", "spatial").
    """

    name: str
    sha256: str
    resize: str
    precision: str
    outputs: tuple[str, ...]

    def to(self, device: torch.device) -> "FeatureNetwork":
        """Moves the weights."""
        ...

    def __call__(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        """float32 features by output, on the images' device, without gradients."""
        ...


@runtime_checkable
class CaptionNetwork(FeatureNetwork, Protocol):
    """A feature network that maps captions into the space of its images."""

    def captions(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """One unit vector per caption, comparable with the output `image`."""
        ...


def check_images(images: Tensor) -> None:
    """Raises ValueError unless `images` is a batch of RGB bytes, so that nothing is converted by a guess."""
    if images.dtype != torch.uint8:
        nan = " with NaN or infinity" if images.is_floating_point() and not images.isfinite().all() else ""
        raise ValueError(
            f"images are {images.dtype}{nan}, and feature networks take bytes; rfdit.images.to_uint8 converts"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images have the shape {tuple(images.shape)}, and feature networks take RGB, (b, 3, H, W); "
            "repeat a grey channel three times, put transparent images on a background"
        )


def check_finite(features: Float[Tensor, "b d"], output: str) -> None:
    """Raises ValueError for NaN and infinite features, which would make the metric's value NaN or infinite."""
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(f"{bad} of {len(features)} images have features ({output}) that are NaN or infinite")


def check_precision(precision: str) -> None:
    """Raises ValueError unless `precision` is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"network.precision={precision} is unknown; use {', '.join(PRECISIONS)}")


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Runs float32 products as `precision` says, whatever training has set; no autocast, no gradients."""
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
    """The type that a network's weights are stored in."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def vit_input(
    images: UInt8[Tensor, "b 3 H W"], size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b 3 h w"]:
    """Images as a vision transformer takes them: resized, kept within [0, 1], then (x - mean) / std.

    The resize is bicubic with antialiasing and does not crop.
    """
    check_images(images)
    x = images.float() / 255
    if tuple(x.shape[2:]) != size:
        x = interpolate(x, size, mode="bicubic", antialias=True).clamp_(0, 1)
    shift, scale = (constant(tuple(values), like=x)[:, None, None] for values in (mean, std))
    return (x - shift) / scale


def vit_resize(size: tuple[int, int]) -> str:
    """The resize of `vit_input` in words."""
    return f"bicubic with antialiasing to {size[0]} x {size[1]}"
