"""What `use=...` offers: how asked-for pictures are made, and what shows them together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from rfdit.grid import captioned_grid, labelled_grid
from rfdit.randomness import SampleGenerator
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampling.request import Asked, Picture, Request


@runtime_checkable
class Use(Protocol):
    """A way to use a model; chosen by `use=...`."""

    def request(self, asked: Asked) -> Request:
        """Which pictures there will be; raises ValueError for what cannot be made in this way."""
        ...

    def __call__(
        self, pipeline: Pipeline, pictures: Sequence[Picture], conditions: Conditions
    ) -> UInt8[Tensor, "n 3 H W"]:
        """A batch of them, of one guidance scale and one seed (of an interpolation, one pair of seeds)."""
        ...

    def show(self, folder: Path, images: UInt8[Tensor, "n 3 H W"], request: Request) -> Path:
        """Writes what shows all of them; the most telling file."""
        ...


def write_sheet(folder: Path, images: UInt8[Tensor, "n 3 H W"], request: Request) -> Path:
    """grid.png: the request's table, or the pictures with their captions."""
    path = folder / "grid.png"
    if request.rows:
        sheet = labelled_grid(images, rows=request.rows, columns=request.columns)
    else:
        captions = [picture.caption for picture in request.pictures]
        sheet = captioned_grid(images, captions, columns=request.width)
    sheet.save(path)
    return path


def generator_of(pipeline: Pipeline, pictures: Sequence[Picture]) -> SampleGenerator:
    """The randomness of pictures of one seed."""
    return pipeline.generator(pictures[0].seed, [picture.key for picture in pictures])


class Pictures:
    """`use=pictures`: from noise alone."""

    def request(self, asked: Asked) -> Request:
        return asked.request()

    def __call__(
        self, pipeline: Pipeline, pictures: Sequence[Picture], conditions: Conditions
    ) -> UInt8[Tensor, "n 3 H W"]:
        inputs = [p.given for p in pictures]
        return pipeline.decode(pipeline.sample(generator_of(pipeline, pictures), inputs, conditions))

    def show(self, folder: Path, images: UInt8[Tensor, "n 3 H W"], request: Request) -> Path:
        return write_sheet(folder, images, request)
