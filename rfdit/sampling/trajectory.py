"""How a picture comes out of noise."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.batch import Latent
from rfdit.flow import data_from_velocity
from rfdit.grid import labelled_grid
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampler.fields import Observed
from rfdit.sampling.request import Asked, Picture, Request
from rfdit.sampling.use import generator_of


class Trajectory:
    """`use=trajectory`: each picture as a strip, from the first step to the last.

    panels: how many states of it; the last is the picture itself.
    predicted: show the data that the network predicts, z_t - t v; otherwise z_t, noise and all.

    Panels are of the steps nearest below evenly spaced times; their times stand above them in grid.png.
    """

    def __init__(self, *, panels: int = 8, predicted: bool = True) -> None:
        if panels < 2:
            raise ValueError(f"use.panels={panels} must be at least 2")
        self.panels, self.predicted = panels, predicted
        self._times: list[float] = []

    def request(self, asked: Asked) -> Request:
        return asked.request()

    def __call__(
        self, pipeline: Pipeline, pictures: Sequence[Picture], conditions: Conditions
    ) -> UInt8[Tensor, "n 3 H W"]:
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
                generator_of(pipeline, pictures),
                [p.given for p in pictures],
                conditions,
                around=lambda guidance: Observed(guidance=guidance, watch=watch),
                on_step=on_step,
            )
        )
        self._times.append(0.0)
        return torch.cat([pipeline.decode(state) for state in states], dim=-1)

    def show(self, folder: Path, images: UInt8[Tensor, "n 3 H W"], request: Request) -> Path:
        panels = torch.stack([part for image in images for part in image.chunk(len(self._times), dim=-1)])
        several = len({picture.seed for picture in request.pictures}) > 1
        rows = [_label(picture, with_seed=several) for picture in request.pictures]
        path = folder / "grid.png"
        labelled_grid(panels, rows=rows, columns=[f"t = {t:.2f}" for t in self._times]).save(path)
        return path


def _label(picture: Picture, *, with_seed: bool) -> str:
    """Its caption, and what tells it from others of the same."""
    seed = f", seed {picture.seed}" if with_seed else ""
    scale = "" if picture.scale is None else f", scale {picture.scale:g}"
    return picture.caption + seed + scale
