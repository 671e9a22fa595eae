"""How images come to a vision transformer: resized, and normalised as in its training."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rfdit.eval.features import check_images


def vit_input(
    images: UInt8[Tensor, "b 3 H W"],
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "b 3 h w"]:
    """Resized bicubically with antialiasing, without cropping, and kept within [0, 1]; then normalised."""
    check_images(images)
    x = images.float() / 255
    if tuple(x.shape[2:]) != size:
        x = torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True).clamp_(0, 1)
    shift, scale = (x.new_tensor(values)[:, None, None] for values in (mean, std))
    return (x - shift) / scale


def resize_in_words(size: tuple[int, int]) -> str:
    """For the protocol."""
    return f"bicubic with antialiasing to {size[0]} x {size[1]}"
