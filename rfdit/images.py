"""Pixel values: bytes in [0, 255] outside, floats in [-1, 1] inside."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_float(images: UInt8[Tensor, "*b 3 H W"]) -> Float[Tensor, "*b 3 H W"]:
    """uint8 -> float32 in [-1, 1], on the images' device."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "*b 3 H W"]) -> UInt8[Tensor, "*b 3 H W"]:
    """Floats in [-1, 1] -> bytes; values outside are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
