"""Images' pixel values, bytes in [0, 255] outside and floats in [-1, 1] inside, and their sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rfdit.limits import are_sides

UInt8Images = UInt8[Tensor, "n 3 H W"]


def to_float(images: UInt8[Tensor, "*b 3 H W"]) -> Float[Tensor, "*b 3 H W"]:
    """uint8 -> float32 in [-1, 1], on the images' device."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "*b 3 H W"]) -> UInt8[Tensor, "*b 3 H W"]:
    """Floats in [-1, 1] -> bytes; values outside are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def parse_size(size: Any, *, setting: str) -> tuple[int, int]:
    """(height, width) of a setting that gives one side of a square, or both sides.

    Raises ValueError that names the setting for anything else than one or two whole numbers above 0.
    """
    several = isinstance(size, Sequence) and not isinstance(size, str)
    sides = tuple(size) if several else (size, size)
    if not are_sides(sides):
        given = list(sides) if several else size
        raise ValueError(f"{setting}={given} must be one side, or [height,width], in whole numbers above 0")
    return sides
