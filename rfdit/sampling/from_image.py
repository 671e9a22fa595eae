"""Pictures that begin with a given one: all of it changed a little, or a part of it made anew."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from torch import Tensor

from rfdit.batch import Latent
from rfdit.flow import interpolate
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampler.fields import KnownRegion
from rfdit.sampling.image_file import measure, read_image, read_mask
from rfdit.sampling.request import Asked, Picture, Request
from rfdit.sampling.use import generator_of, write_sheet


class ImageToImage:
    """`use=image_to_image`: the given picture, noised to t = strength and sampled from there (arXiv 2108.01073).

    image: a file. strength: near 0 keeps it, 1 is a picture from noise alone.
    All of the sampler's steps are taken between t = strength and t = 0.
    """

    def __init__(self, *, image: str, strength: float = 0.6) -> None:
        if not 0 < strength <= 1:
            raise ValueError(f"use.strength={strength} must be above 0 and at most 1")
        self.image, self.strength = image, float(strength)
        self._z0: Latent | None = None

    def request(self, asked: Asked) -> Request:
        measure(self.image, setting="use.image")
        return asked.request()

    def __call__(
        self, pipeline: Pipeline, pictures: Sequence[Picture], conditions: Conditions
    ) -> UInt8[Tensor, "n 3 H W"]:
        if self._z0 is None:
            self._z0 = pipeline.encode(read_image(self.image, pipeline.image_size, setting="use.image")[None])
        generator = generator_of(pipeline, pictures)
        noise = pipeline.noise(generator)
        t = torch.full((len(noise),), self.strength, device=noise.device)
        z_t = interpolate(self._z0.expand_as(noise), noise, t)
        inputs = [p.given for p in pictures]
        return pipeline.decode(pipeline.sample(generator, inputs, conditions, z_t=z_t, start=self.strength))

    def show(self, folder: Path, images: UInt8[Tensor, "n 3 H W"], request: Request) -> Path:
        return write_sheet(folder, images, request)


class Inpaint:
    """`use=inpaint`: the given picture with what is white in a mask made anew.

    image, mask: files of one size. What is black in the mask stays as it is, to the pixel; what the
    network sees of it follows its path from noise to the picture at every step (see `KnownRegion`).
    """

    def __init__(self, *, image: str, mask: str) -> None:
        self.image, self.mask = image, mask
        self._read: tuple[UInt8[Tensor, "3 H W"], Bool[Tensor, "H W"], Latent] | None = None

    def request(self, asked: Asked) -> Request:
        """Raises ValueError for files that are missing, of two sizes, or a mask without white."""
        image, mask = measure(self.image, setting="use.image"), measure(self.mask, setting="use.mask")
        if image != mask:
            raise ValueError(
                f"use.mask={self.mask} has {mask[0]}x{mask[1]} pixels (height x width) and use.image={self.image} has "
                f"{image[0]}x{image[1]}; they must be of one size"
            )
        if not bool(read_mask(self.mask, mask, setting="use.mask").any()):
            raise ValueError(f"use.mask={self.mask} is all black; what is white in it is painted")
        return replace(asked.request(), needs_ode="use=inpaint keeps what is known on its straight path")

    def __call__(
        self, pipeline: Pipeline, pictures: Sequence[Picture], conditions: Conditions
    ) -> UInt8[Tensor, "n 3 H W"]:
        if self._read is None:
            size = pipeline.image_size
            given = read_image(self.image, size, setting="use.image")
            z0 = pipeline.encode(given[None])
            self._read = given, read_mask(self.mask, size, setting="use.mask"), z0
        given, white, z0 = self._read
        generator = generator_of(pipeline, pictures)
        noise = pipeline.noise(generator)
        # A latent pixel with any white in it is made anew; max-pooling finds it.
        painted = F.adaptive_max_pool2d(white[None, None].float(), z0.shape[-2:]) > 0
        known = ~painted.to(noise.device)
        latents = pipeline.sample(
            generator,
            [p.given for p in pictures],
            conditions,
            around=lambda guidance: KnownRegion(
                guidance=guidance, known=known, z0=z0.expand_as(noise), z1=noise
            ),
        )
        return torch.where(white, pipeline.decode(latents), given)

    def show(self, folder: Path, images: UInt8[Tensor, "n 3 H W"], request: Request) -> Path:
        return write_sheet(folder, images, request)
