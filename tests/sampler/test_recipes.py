"""The recipes sample as the published models' own scripts do, over whole trajectories with the same noise.

Each reference is a loop written from the paper and from what the script does, in the repository's own time, over
the network of `tests.support.models.originals` with random weights.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.config.build import build
from rfdit.interchange.published.layout import LAYOUTS, from_published
from rfdit.model import DiT
from rfdit.randomness import SampleGenerator
from rfdit.sampler import Sampler
from tests.support.commands.composing import composed
from tests.support.models.originals import (
    CHANNELS,
    CLASSES,
    HEADS,
    PATCH,
    SIDE,
    State,
    difference,
    published,
    reference,
)

pytestmark = pytest.mark.slow
N, LABELS, NULL = 2, torch.tensor([0, 5]), torch.tensor([CLASSES, CLASSES])
Noise = Callable[[int], Tensor]  # of a step
Field = Callable[[Tensor, float], Tensor]


def network(state: State) -> Callable[[Tensor, float, Tensor], Tensor]:
    return lambda x, t, y: reference(state, x, torch.full((N,), t), y)[:, :CHANNELS]


def guided(state: State, scale: float, channels: int) -> Field:
    """Classifier-free guidance of the first channels."""
    net = network(state)

    def field(x: Tensor, t: float) -> Tensor:
        c, u = net(x, t, LABELS), net(x, t, NULL)
        return torch.cat([u[:, :channels] + scale * (c - u)[:, :channels], c[:, channels:]], 1)

    return field


def sit(state: State, x: Tensor, noise: Noise) -> Tensor:
    """From noise at s = 0 to data at s = 1, dx = (u + w/2 score) ds + sqrt(w) dW with w / 2 = sigma = 1 - s."""
    field = guided(state, 1.5, 3)

    def drift(x: Tensor, s: float) -> Tensor:
        u = field(x, s)
        score = (s * u - x) / (1 - s)
        return u + (1 - s) * score

    grid = torch.linspace(0, 0.96, 250, dtype=torch.float64).tolist()
    for i in range(249):
        ds = grid[i + 1] - grid[i]
        x = x + ds * drift(x, grid[i]) + (2 * (1 - grid[i]) * ds) ** 0.5 * noise(i)
    return x + 0.04 * drift(x, 0.96)


def repa(state: State, x: Tensor, noise: Noise) -> Tensor:
    """From noise at t = 1 to data at t = 0 with w = 2t, guidance on all channels for t <= 0.7."""
    whole, plain = guided(state, 1.8, CHANNELS), network(state)

    def drift(x: Tensor, t: float) -> Tensor:
        v = whole(x, t) if t <= 0.7 else plain(x, t, LABELS)
        return v - t * (-(x + (1 - t) * v) / t)

    grid = torch.linspace(1, 0.04, 250, dtype=torch.float64).tolist()
    for i in range(249):
        dt = grid[i] - grid[i + 1]
        x = x - dt * drift(x, grid[i]) + (2 * grid[i] * dt) ** 0.5 * noise(i)
    return x - 0.04 * drift(x, grid[-1])


def repa_heun(state: State, x: Tensor, noise: Noise) -> Tensor:
    """Heun's method in 20 steps, the last of them Euler's."""
    plain, grid = network(state), torch.linspace(1, 0, 21, dtype=torch.float64).tolist()
    for i in range(20):
        dt = grid[i] - grid[i + 1]
        slope = plain(x, grid[i], LABELS)
        if i < 19:
            slope = (slope + plain(x - dt * slope, grid[i + 1], LABELS)) / 2
        x = x - dt * slope
    return x


def lightningdit(state: State, x: Tensor, noise: Noise) -> Tensor:
    """Euler's method on 250 points from s = 0 to 1, shifted by 0.3; guidance of three channels for s >= 0.125."""
    whole, plain = guided(state, 6.7, 3), network(state)
    grid = [0.3 * s / (1 - 0.7 * s) for s in torch.linspace(0, 1, 250, dtype=torch.float64).tolist()]
    for here, there in pairwise(grid):
        x = x + (there - here) * (whole(x, here) if here >= 0.125 else plain(x, here, LABELS))
    return x


HEUN = ["sampler=heun", "sampler.solver.last_step=euler", "sampler.steps=20", "guidance=none"]
RECIPES = {
    "sit": ("sit", True, ["recipe=sit_xl2"], sit),
    "repa": ("repa", False, ["recipe=repa_xl2"], repa),
    "repa's heun": ("repa", False, HEUN, repa_heun),
    "lightningdit": ("lightningdit", False, ["recipe=lightningdit_xl1"], lightningdit),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_trajectory_is_the_scripts(name: str) -> None:
    source, sigma, overrides, script = RECIPES[name]
    state = published(source, sigma=sigma)
    made, settings = from_published(state, LAYOUTS[source], HEADS)
    backbone = DiT(**settings).requires_grad_(False)
    prefix = "backbone."
    backbone.load_state_dict({k.removeprefix(prefix): x for k, x in made.items() if k.startswith(prefix)})
    table = made["conditioner.table.weight"]
    generator = SampleGenerator(seed=0, keys=torch.arange(N))
    shape = (CHANNELS, SIDE * PATCH, SIDE * PATCH)
    start = generator.fork("image").normal(*shape)
    sampler = build(composed("sample", *overrides)["sampler"])
    assert isinstance(sampler, Sampler)
    conditions = Condition(pooled=table[LABELS]), Condition(pooled=table[NULL])
    found = sampler(backbone, start, *conditions, generator=generator)
    theirs = script(state, start, lambda i: generator.fork(f"step {i}").normal(*shape))
    print(f"{name}: largest relative difference {difference(found, theirs):.1e}")
    assert difference(found, theirs) <= 1e-4
