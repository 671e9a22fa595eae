"""Trajectories: the states of an image on its way from noise to data."""

from pathlib import Path

import torch
from torch import Tensor

from rfdit.batch import Latent
from rfdit.flow import data_from_velocity
from rfdit.generate.request import ContactSheet, ImageSpec, SampleRequest, Specs
from rfdit.generate.uses.use import generator_of, inputs_of
from rfdit.image_grid import labelled_grid, write_image
from rfdit.images import UInt8Images
from rfdit.limits import AtLeastTwo
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampler.fields import Observed


class Trajectory:
    """`use=trajectory`: each image as a strip, from the first step to the last.

    panels: states to show; the last is the image itself.
    predicted: show the data that the network predicts, z_t - t v; otherwise z_t with its noise.

    Panels show the steps nearest below evenly spaced times, which stand above them in grid.png.
    """

    def __init__(self, *, panels: AtLeastTwo = 8, predicted: bool = True) -> None:
        if panels < 2:
            raise ValueError(f"use.panels={panels} must be at least 2")
        self.panels, self.predicted = panels, predicted
        self._times: list[float] = []

    def sheet(self, request: SampleRequest) -> ContactSheet:
        return request.sheet()

    def __call__(self, pipeline: Pipeline, specs: Specs, conditions: Conditions) -> UInt8Images:
        states: list[Latent] = []
        self._times = []
        begins_step = True

        def watch(z: Latent, v: Latent, t: Tensor) -> None:
            nonlocal begins_step
            due = 1 - len(states) / (self.panels - 1)
            if begins_step and len(states) < self.panels - 1 and float(t) <= due + 1e-6:
                each = t.to(z.device).expand(len(z))
                states.append(data_from_velocity(z, v, each) if self.predicted else z)
                self._times.append(float(t))
            begins_step = False

        def on_step(done: int, z: Latent) -> None:
            nonlocal begins_step
            begins_step = True

        states.append(
            pipeline.sample(
                generator_of(pipeline, specs),
                inputs_of(specs),
                conditions,
                around=lambda guidance: Observed(guidance=guidance, watch=watch),
                on_step=on_step,
            )
        )
        self._times.append(0.0)
        return torch.cat([pipeline.decode(state) for state in states], dim=-1)

    def show(self, folder: Path, images: UInt8Images, sheet: ContactSheet) -> Path:
        panels = torch.stack([part for image in images for part in image.chunk(len(self._times), dim=-1)])
        several = len({spec.seed for spec in sheet.specs}) > 1
        rows = [_label(spec, with_seed=several) for spec in sheet.specs]
        path = folder / "grid.png"
        columns = [f"t = {t:.2f}" for t in self._times]
        write_image(path, labelled_grid(panels, rows=rows, columns=columns))
        return path


def _label(spec: ImageSpec, *, with_seed: bool) -> str:
    """The caption, with the seed and the scale by which images of one caption differ."""
    seed = f", seed {spec.seed}" if with_seed else ""
    scale = "" if spec.scale is None else f", scale {spec.scale:g}"
    return spec.caption + seed + scale
