"""Frozen encoder and decoder of a pretrained autoencoder, for use in a training step."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.pretrained.frozen import Frozen


class FrozenHalves:
    """Runs an encoder or a decoder without gradients, in a fast dtype, a slice of the batch at a time.

    dtype: `auto` (bf16 where the hardware multiplies it fast), `fp32` or `bf16`.
    slice_size: samples per slice, which bounds the memory; None processes the whole batch at once.
    """

    def __init__(self, module: nn.Module, *, dtype: str = "auto", slice_size: int | None = None) -> None:
        if slice_size is not None and slice_size < 1:
            raise ValueError(f"autoencoder.slice_size={slice_size} must be at least 1, or null for no slices")
        # Convolutions of images are 1.3 to 1.6 times faster in this layout (measured on CPU, fp32 and bf16). Those of
        # clips do not have it.
        if all(parameter.ndim < 5 for parameter in module.parameters()):
            module = module.to(memory_format=torch.channels_last)
        self.frozen = Frozen(module, dtype=dtype, setting="autoencoder.dtype")
        self._slice_size = slice_size

    def run(
        self, half: Callable[[Any, Tensor], Tensor], inputs: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b _ _ _"]:
        """Applies `half(module, slice)` to every slice of the inputs; (b, c, h, w), float32."""
        device = inputs.device
        dtype = self.frozen.dtype_on(device)
        module = self.frozen.on(device, dtype)
        slices = inputs.to(dtype, memory_format=torch.channels_last).split(self._slice_size or len(inputs))
        # no_grad, not inference_mode: a training step must be able to save the result for backward.
        # Autocast of the caller would change the dtype.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            outputs = [half(module, part).float() for part in slices]
        return torch.cat(outputs).contiguous()


def check_divisible(images: Tensor, downsampling: int) -> None:
    """Raises ValueError for images whose sides the autoencoder would round, with a size that fits."""
    height, width = images.shape[-2:]
    if height % downsampling or width % downsampling:
        fitting = f"{height // downsampling * downsampling}x{width // downsampling * downsampling}"
        raise ValueError(
            f"autoencoder.downsampling={downsampling} does not divide images of {height}x{width} pixels; "
            f"use {fitting}"
        )


def check_sides(images: Tensor, sides: tuple[int, int] | None) -> None:
    """Raises ValueError for images of other sides than the only ones that an autoencoder takes; None takes any."""
    if sides is not None and tuple(images.shape[-2:]) != sides:
        given, own = ("x".join(map(str, each)) for each in (images.shape[-2:], sides))
        raise ValueError(f"data.resolution: this autoencoder takes images of {own} pixels, not {given}")
