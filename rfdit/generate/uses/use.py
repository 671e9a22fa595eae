"""The protocol behind `use=...`, and its default: images from noise alone."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from rfdit.batch import Latent
from rfdit.generate.request import ContactSheet, SampleRequest, Specs
from rfdit.image_grid import captioned_grid, labelled_grid, write_image
from rfdit.images import UInt8Images
from rfdit.randomness import SampleGenerator
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions


@runtime_checkable
class Use(Protocol):
    """A way to generate images with a model."""

    def sheet(self, request: SampleRequest) -> ContactSheet:
        """The images to generate; raises ValueError for those that cannot be generated in this way."""
        ...

    def __call__(self, pipeline: Pipeline, specs: Specs, conditions: Conditions) -> UInt8Images:
        """A batch of images of one kind: of one guidance scale and seed (or pair of seeds)."""
        ...

    def show(self, folder: Path, images: UInt8Images, sheet: ContactSheet) -> Path:
        """Writes the files that show all images together; returns the most informative one."""
        ...


@runtime_checkable
class GivesLatents(Protocol):
    """A `Use` whose images are those of latents that noise alone becomes."""

    def latents(self, pipeline: Pipeline, specs: Specs, conditions: Conditions) -> Latent:
        """The latents of a batch of one kind before they are decoded, not normalised, on the CPU."""
        ...


class FromNoise:
    """`use=from_noise`: each image from its noise, all of them together in grid.png."""

    def sheet(self, request: SampleRequest) -> ContactSheet:
        return request.sheet()

    def __call__(self, pipeline: Pipeline, specs: Specs, conditions: Conditions) -> UInt8Images:
        return pipeline.decode(pipeline.sample(generator_of(pipeline, specs), inputs_of(specs), conditions))

    def latents(self, pipeline: Pipeline, specs: Specs, conditions: Conditions) -> Latent:
        """As of `GivesLatents`."""
        sampled = pipeline.sample(generator_of(pipeline, specs), inputs_of(specs), conditions)
        return pipeline.unnormalised(sampled)

    def show(self, folder: Path, images: UInt8Images, sheet: ContactSheet) -> Path:
        return write_grid(folder, images, sheet)


def write_grid(folder: Path, images: UInt8Images, sheet: ContactSheet) -> Path:
    """Writes grid.png: the sheet's table, or the images with their captions."""
    if sheet.rows:
        grid = labelled_grid(images, rows=sheet.rows, columns=sheet.columns)
    else:
        grid = captioned_grid(images, [spec.caption for spec in sheet.specs], columns=sheet.width)
    path = folder / "grid.png"
    write_image(path, grid)
    return path


def generator_of(pipeline: Pipeline, specs: Specs) -> SampleGenerator:
    """The randomness of images of one seed."""
    return pipeline.generator(specs[0].seed, [spec.key for spec in specs])


def inputs_of(specs: Specs) -> list[str | int]:
    """The prompts or labels of images."""
    return [spec.input for spec in specs]
