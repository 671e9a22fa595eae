"""Micro-conditioning (SDXL, arXiv 2307.01952, sec. 2.2): numbers about an image that the model reads with its caption.

The numbers are the image's size before it was resized, where the crop begins, and the size of the crop, all in pixels,
and numbers from the metadata. Images are resized to cover the crop, which is their middle, so that the crop begins at
(s h - H) / 2, in pixels of the resized image, for an image of h x w, a crop of H x W and s = max(H / h, W / w). A
mirrored image has the same numbers.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.limits import Finite

ORIGINAL, CROP, TARGET = (
    ("original_height", "original_width"),
    ("crop_top", "crop_left"),
    ("target_height", "target_width"),
)
SIZES = (*ORIGINAL, *CROP, *TARGET)  # fields that are known of every image; others are in its metadata
FEATURES = 256  # Fourier features of a number

# Fields in order, each with the number with which images are sampled by default; None is that of the image.
Fields = Mapping[str, Finite | None]


def check_fields(fields: Fields) -> None:
    """Raises ValueError, naming the field, for one of the metadata without a number for sampling."""
    if not fields:
        raise ValueError("conditioner.micro has no fields; use micro=none")
    for name, value in fields.items():
        if value is None and name not in SIZES:
            raise ValueError(
                f"conditioner.micro.{name}=null: null stands for the image's own number, which only "
                f"{', '.join(SIZES)} have; give the number with which images are sampled"
            )
        if value is not None and not math.isfinite(value):
            raise ValueError(f"conditioner.micro.{name}={value} must be finite")


def sizes_of(original: tuple[int, int], target: tuple[int, int]) -> dict[str, float]:
    """The sizes of an image of `original` (height, width) that is resized to cover `target`, and cropped to it."""
    scale = max(to / of for to, of in zip(target, original))
    crop = [(of * scale - to) / 2 for to, of in zip(target, original)]
    return dict(zip(SIZES, [*map(float, original), *crop, *map(float, target)]))


def sampled_values(
    fields: Fields, given: Mapping[str, float], image_size: tuple[int, int] | None
) -> list[float]:
    """The numbers with which images are sampled, in the order of the fields.

    given: those that replace the defaults, by name. image_size: (height, width) of the images.
    Raises ValueError for names that are not fields.
    """
    if unknown := sorted(given.keys() - fields.keys()):
        raise ValueError(
            f"micro.{unknown[0]} is not a field with which the model was trained; it has {', '.join(fields)}"
        )
    own = {} if image_size is None else sizes_of(image_size, image_size)
    values = {**own, **{name: value for name, value in fields.items() if value is not None}, **given}
    if missing := [name for name in fields if name not in values]:
        raise ValueError(f"micro.{missing[0]} is not known here; give it")
    return [float(values[name]) for name in fields]


def fourier_features(values: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
    """[cos, sin] of each number at 128 frequencies 10000^(-i/128), as of the time; (b, 256 n), float32."""
    half = FEATURES // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=values.device) / half)
    angles = values.float()[:, :, None] * frequencies  # (b, n, 128)
    return torch.cat([angles.cos(), angles.sin()], dim=2).flatten(1)


def in_order(fields: Sequence[str], known: Mapping[str, float]) -> tuple[float, ...]:
    """The numbers of the fields."""
    return tuple(known[name] for name in fields)
