"""Images that start from a given one: the whole image varied, or a part of it generated anew."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from rfdit.batch import Latent
from rfdit.data.decode import decode_image, decode_rgb, measured
from rfdit.data.skips import SkippedSampleError
from rfdit.flow import interpolate
from rfdit.generate.request import ContactSheet, SampleRequest, Specs
from rfdit.generate.uses.use import generator_of, inputs_of, write_grid
from rfdit.images import UInt8Images
from rfdit.limits import Limit
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampler.fields import KnownRegion

T = TypeVar("T")
WHITE = 128  # a mask's pixel is white from this grey on


Strength = Annotated[float, Limit("above 0 and at most 1", lambda x: 0 < x <= 1)]


class ImageToImage:
    """`use=image_to_image`: the given image, noised to t = strength and sampled from there (arXiv 2108.01073).

    image: a file. strength: near 0 keeps it, 1 is an image from noise alone.
    All of the sampler's steps are taken between t = strength and t = 0.
    """

    def __init__(self, *, image: str, strength: Strength = 0.6) -> None:
        if not 0 < strength <= 1:
            raise ValueError(f"use.strength={strength} must be above 0 and at most 1")
        self.image, self.strength = image, float(strength)
        self._z0: Latent | None = None

    def sheet(self, request: SampleRequest) -> ContactSheet:
        size_of(self.image, setting="use.image")
        return request.sheet()

    def __call__(self, pipeline: Pipeline, specs: Specs, conditions: Conditions) -> UInt8Images:
        if self._z0 is None:
            self._z0 = pipeline.encode(read_image(self.image, pipeline.image_size, setting="use.image")[None])
        return vary(pipeline, specs, conditions, z0=self._z0, strength=self.strength)

    def show(self, folder: Path, images: UInt8Images, sheet: ContactSheet) -> Path:
        return write_grid(folder, images, sheet)


def vary(
    pipeline: Pipeline, specs: Specs, conditions: Conditions, *, z0: Latent, strength: float
) -> UInt8Images:
    """A batch of variations of one latent z0, (1, c, h, w), noised to t = strength and sampled from there."""
    generator = generator_of(pipeline, specs)
    z1 = pipeline.noise(generator)
    z_t = interpolate(z0.expand_as(z1), z1, torch.full((len(z1),), strength, device=z1.device))
    return pipeline.decode(pipeline.sample(generator, inputs_of(specs), conditions, z_t=z_t, start=strength))


class Inpaint:
    """`use=inpaint`: the given image, with the white part of a mask generated anew.

    image, mask: files of the same size. The black part of the mask stays as it is, to the pixel; the
        network sees it on its path from noise to the image at every step (see `KnownRegion`).
    """

    def __init__(self, *, image: str, mask: str) -> None:
        self.image, self.mask = image, mask
        self._read: tuple[UInt8[Tensor, "3 H W"], Bool[Tensor, "H W"], Latent] | None = None

    def sheet(self, request: SampleRequest) -> ContactSheet:
        """Raises ValueError for files that are missing or of two sizes, or a mask without white."""
        image, mask = size_of(self.image, setting="use.image"), size_of(self.mask, setting="use.mask")
        if image != mask:
            raise ValueError(
                f"use.mask={self.mask} has {mask[0]}x{mask[1]} pixels (height x width) and use.image={self.image} has "
                f"{image[0]}x{image[1]}; they must be of one size"
            )
        if bool(read_mask(self.mask, mask, setting="use.mask").all()):
            warnings.warn(
                f"use.mask={self.mask} is white everywhere, so that nothing of use.image is kept",
                stacklevel=2,
            )
        return replace(request.sheet(), needs_ode="use=inpaint keeps what is known on its straight path")

    def __call__(self, pipeline: Pipeline, specs: Specs, conditions: Conditions) -> UInt8Images:
        if self._read is None:
            size = pipeline.image_size
            image = read_image(self.image, size, setting="use.image")
            mask = read_mask(self.mask, size, setting="use.mask")
            self._read = image, mask, pipeline.encode(image[None])
        image, white, z0 = self._read
        generator = generator_of(pipeline, specs)
        z1 = pipeline.noise(generator)
        # Max-pooling: a latent pixel with any white in it is generated anew.
        known = F.adaptive_max_pool2d(white[None, None].float(), z0.shape[-2:]).to(z1.device) == 0
        latents = pipeline.sample(
            generator,
            inputs_of(specs),
            conditions,
            around=lambda guidance: KnownRegion(guidance=guidance, known=known, z0=z0.expand_as(z1), z1=z1),
        )
        return torch.where(white, pipeline.decode(latents), image)

    def show(self, folder: Path, images: UInt8Images, sheet: ContactSheet) -> Path:
        return write_grid(folder, images, sheet)


def read_image(path: str, size: tuple[int, int], *, setting: str) -> UInt8[Tensor, "3 H W"]:
    """An image file whose centre is resized to `size` = (height, width), as training does with its data.

    Raises ValueError, naming `setting`, for a file that is missing or is not an image.
    """
    return _read(path, partial(decode_image, size=size), setting=setting)


def read_mask(path: str, size: tuple[int, int], *, setting: str) -> Bool[Tensor, "H W"]:
    """True where a mask is white, its centre resized to `size` as `read_image` does with its image.

    Transparent parts are black. A pixel that has any white in it is white, so that a thin line does not
    get lost.
    Raises ValueError, naming `setting`, for a file that is missing or is not an image, and for a mask
    without white.
    """
    grey = _read(path, partial(decode_rgb, background="black"), setting=setting).convert("L")
    height, width = size
    white = (np.asarray(grey) >= WHITE).astype(np.float32)
    share = np.asarray(
        ImageOps.fit(Image.fromarray(white), (width, height), method=Image.Resampling.BOX), np.float32
    )
    if not share.any():
        cropped = ", once its edges are cropped to the shape of the model's images" if white.any() else ""
        raise ValueError(
            f"{setting}={path} is all black{cropped}; give a mask that is white where the image is to be "
            "generated anew"
        )
    return torch.from_numpy(share > 0)


def _read(path: str, decode: Callable[[bytes], T], *, setting: str) -> T:
    """A decoded image file; raises ValueError, naming `setting`, if it is missing or cannot be decoded."""
    size_of(path, setting=setting)
    try:
        return decode(Path(path).expanduser().read_bytes())
    except (OSError, SkippedSampleError) as error:
        reason = getattr(error, "detail", "") or error
        raise ValueError(f"{setting}={path} cannot be read as an image: {reason}") from None


def size_of(path: str, *, setting: str) -> tuple[int, int]:
    """(height, width) of an image file; raises ValueError, naming `setting`, if it is missing or not one."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{setting}={path} is not a file; give an image")
    try:
        return measured(str(file))
    except SkippedSampleError as error:
        raise ValueError(f"{setting}={path} cannot be read as an image: {error.detail or error}") from None
