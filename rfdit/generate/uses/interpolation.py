"""Interpolation from one image to another."""

import math
from itertools import pairwise
from pathlib import Path

import torch

from rfdit.counted import counted
from rfdit.generate.request import ContactSheet, Endpoint, ImageSpec, SampleRequest, Specs
from rfdit.generate.uses.use import generator_of, inputs_of
from rfdit.image_grid import to_pil, write_image
from rfdit.images import UInt8Images
from rfdit.limits import Count, Positive
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampler.fields import Between, slerp


class Interpolation:
    """`use=interpolate`: between prompts (or labels), seeds, or both at once.

    frames: images from one prompt or seed to the next, the next not counted.
    fps: images per second of the animation.

    Noise goes along the arc (`slerp`), the velocity from one prompt's to the other's (`Between`).
    Writes strip.png, all images in a row, and interpolation.webp.
    """

    def __init__(self, *, frames: Count = 8, fps: Positive = 12) -> None:
        if frames < 1 or not 0 < fps < math.inf:
            raise ValueError(f"use.frames={frames} must be at least 1, and use.fps={fps} above 0")
        self.frames, self.fps = frames, fps

    def sheet(self, request: SampleRequest) -> ContactSheet:
        """Raises ValueError unless there are at least two prompts or seeds, and as many of both if both are several."""
        if request.scales is not None or request.count != 1 or request.total is not None:
            raise ValueError(
                "use=interpolate goes from prompt to prompt and seed to seed, without count, total or scales"
            )
        prompts = list(zip(request.inputs, request.captions))
        seeds = list(request.seeds or [request.seed])
        n = max(len(prompts), len(seeds))
        if n < 2:
            raise ValueError(
                "use=interpolate needs two prompts or two seeds; give 'prompts=[a, b]' or seeds=[0,1]"
            )
        if {len(prompts), len(seeds)} - {1, n}:
            inputs = counted(len(prompts), "prompt or label", "prompts or labels")
            raise ValueError(
                f"use=interpolate has {inputs} and seeds has {counted(len(seeds), 'entry', 'entries')}; give as "
                "many of both, or only one of either"
            )
        prompts, seeds = prompts * (n // len(prompts)), seeds * (n // len(seeds))
        stops, key = list(zip(prompts, seeds)), request.first_key
        specs = [
            ImageSpec(input, caption, seed, key, toward=Endpoint(end, end_seed, k / self.frames))
            for ((input, caption), seed), ((end, _), end_seed) in pairwise(stops)
            for k in range(self.frames)
        ]
        (input, caption), seed = stops[-1]
        specs.append(ImageSpec(input, caption, seed, key, toward=Endpoint(input, seed, 0.0)))
        several = len(set(seeds)) > 1
        return ContactSheet(
            specs=specs,
            needs_ode="use=interpolate goes from seed to seed by their first noise alone" if several else "",
        )

    def __call__(self, pipeline: Pipeline, specs: Specs, conditions: Conditions) -> UInt8Images:
        ends = [spec.toward for spec in specs if spec.toward is not None]
        assert len(ends) == len(specs)
        weight = torch.tensor([end.weight for end in ends], device=pipeline.device)
        generator = generator_of(pipeline, specs)
        end_generator = pipeline.generator(ends[0].seed, [spec.key for spec in specs])
        z_t = slerp(pipeline.noise(generator), pipeline.noise(end_generator), weight)
        inputs, end_inputs = inputs_of(specs), [end.input for end in ends]
        if inputs == end_inputs:
            return pipeline.decode(pipeline.sample(generator, inputs, conditions, z_t=z_t))
        other, other_null = conditions(end_inputs), conditions.away(end_inputs)
        latents = pipeline.sample(
            generator,
            inputs,
            conditions,
            z_t=z_t,
            around=lambda guidance: Between(
                guidance=guidance, other=other, other_null=other_null, weight=weight
            ),
        )
        return pipeline.decode(latents)

    def show(self, folder: Path, images: UInt8Images, sheet: ContactSheet) -> Path:
        write_image(folder / "strip.png", to_pil(torch.cat(list(images), dim=-1)))
        first, *rest = [to_pil(image) for image in images]
        path, duration = folder / "interpolation.webp", round(1000 / self.fps)
        write_image(path, first, save_all=True, append_images=rest, duration=duration, loop=0, lossless=True)
        return path
