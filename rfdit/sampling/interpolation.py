"""From one picture to another by way of those between."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.grid import to_pil
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampler.fields import Between, slerp
from rfdit.sampling.request import Asked, Picture, Request, Toward


class Interpolation:
    """`use=interpolate`: between prompts (or labels), seeds, or both at once.

    frames: pictures from one to the next, the next not counted.
    fps: pictures a second of the animation.

    Noise goes along the arc (`slerp`), the velocity from one prompt's to the other's (`Between`).
    Writes strip.png, all pictures in a row, and interpolation.webp.
    """

    def __init__(self, *, frames: int = 8, fps: float = 12) -> None:
        if frames < 1 or fps <= 0:
            raise ValueError(f"use.frames={frames} must be at least 1, and use.fps={fps} above 0")
        self.frames, self.fps = frames, fps

    def request(self, asked: Asked) -> Request:
        """Raises ValueError unless there are at least two prompts or seeds, of both as many if both are several."""
        if asked.scales is not None or asked.count != 1 or asked.total is not None:
            raise ValueError(
                "use=interpolate goes from prompt to prompt and seed to seed, without count, total or scales"
            )
        inputs, captions, seeds = list(asked.inputs), list(asked.captions), list(asked.seeds or [asked.seed])
        n = max(len(inputs), len(seeds))
        if n < 2:
            raise ValueError(
                "use=interpolate needs two prompts or two seeds; give 'prompts=[a, b]' or seeds=[0,1]"
            )
        if {len(inputs), len(seeds)} - {1, n}:
            raise ValueError(
                f"use=interpolate has {len(inputs)} prompts or labels and seeds has {len(seeds)} entries; give as many "
                "of both, or one of either"
            )
        if len(inputs) == 1:
            inputs, captions = inputs * n, captions * n
        seeds = seeds * n if len(seeds) == 1 else seeds
        stops = list(zip(inputs, captions, seeds))
        pictures = [
            Picture(given, caption, seed, asked.first_key, toward=Toward(to, to_seed, k / self.frames))
            for (given, caption, seed), (to, _, to_seed) in pairwise(stops)
            for k in range(self.frames)
        ]
        given, caption, seed = stops[-1]
        pictures.append(Picture(given, caption, seed, asked.first_key, toward=Toward(given, seed, 0.0)))
        several = len(set(seeds)) > 1
        return Request(
            pictures=pictures,
            needs_ode="use=interpolate goes from seed to seed by their first noise alone" if several else "",
        )

    def __call__(
        self, pipeline: Pipeline, pictures: Sequence[Picture], conditions: Conditions
    ) -> UInt8[Tensor, "n 3 H W"]:
        keys, towards = [p.key for p in pictures], [p.toward for p in pictures]
        ends = [toward for toward in towards if toward is not None]
        assert len(ends) == len(pictures)
        weight = torch.tensor([end.weight for end in ends], device=pipeline.device)
        generator, there = (pipeline.generator(first.seed, keys) for first in (pictures[0], ends[0]))
        z_t = slerp(pipeline.noise(generator), pipeline.noise(there), weight)
        given, other = [p.given for p in pictures], [end.given for end in ends]
        if given == other:
            return pipeline.decode(pipeline.sample(generator, given, conditions, z_t=z_t))
        cond, away = conditions(other), conditions.away(other)
        latents = pipeline.sample(
            generator,
            given,
            conditions,
            z_t=z_t,
            around=lambda guidance: Between(guidance=guidance, other=cond, other_null=away, weight=weight),
        )
        return pipeline.decode(latents)

    def show(self, folder: Path, images: UInt8[Tensor, "n 3 H W"], request: Request) -> Path:
        to_pil(torch.cat(list(images), dim=-1)).save(folder / "strip.png")
        first, *rest = [to_pil(image) for image in images]
        duration = round(1000 / self.fps)
        path = folder / "interpolation.webp"
        first.save(path, save_all=True, append_images=rest, duration=duration, loop=0, lossless=True)
        return path
