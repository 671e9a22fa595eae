"""Time grids: where the steps of a solver begin and end."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from rfdit.counted import counted
from rfdit.flow import shift_time
from rfdit.limits import Count, Fraction
from rfdit.model.vp_schedule import VPSchedule

Points = Float64[Tensor, "n"]


@runtime_checkable
class TimeGrid(Protocol):
    """The points of any number of steps."""

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        """steps + 1 times, from exactly 1 down to exactly 0.

        latent_size: (height, width) of a latent, for grids that depend on it.
        """
        ...


class UniformGrid:
    """Steps of equal length."""

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class ResolutionGrid:
    """Equal steps, shifted by sqrt(m / n) for latents of m positions (arXiv 2403.03206, eq. 23).

    n = base_size^2. Larger latents need more noise to hide the same content, so more steps are spent at
    high noise.
    base_size: side of the square latents for which equal steps are right.
    """

    def __init__(self, *, base_size: Count) -> None:
        if base_size < 1:
            raise ValueError(f"sampler.grid.base_size={base_size} must be at least 1")
        self.base_size = base_size

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        if latent_size is None:
            raise ValueError("the times of sampler.grid=ResolutionGrid depend on latent_size; give it")
        shift = math.sqrt(math.prod(latent_size)) / self.base_size
        return shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


class CosineGrid:
    """The noise levels of equal steps of a cosine schedule: finest in the middle (arXiv 2102.09672).

    That schedule is z = cos(pi u / 2) z0 + sin(pi u / 2) z1; the straight path has the same ratio of
    noise to data at t = sin / (sin + cos). `CosMapTime` is the corresponding density in training.
    """

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        angle = math.pi / 2 * torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return angle.sin() / (angle.sin() + angle.cos())


class LastStepGrid:
    """Steps of equal length except the last, of length `size`: the denoising step of a stochastic solver.

    The score grows as 1 / t, so SiT's sampler comes no nearer to data than 0.04 (arXiv 2401.08740).
    """

    def __init__(self, *, size: Fraction = 0.04) -> None:
        if not 0 < size < 1:
            raise ValueError(f"sampler.grid.size={size} must lie between 0 and 1")
        self.size = size

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        regular = torch.linspace(1, self.size, steps, dtype=torch.float64)
        return torch.cat([regular, torch.zeros(1, dtype=torch.float64)])


class RespacedGrid:
    """The times of `steps` timesteps of a schedule, evenly spaced from last to first (arXiv 2102.09672, sec. 4).

    Timestep i of N among T is round(i (T - 1) / (N - 1)), as in DDPM's and DiT's code. The first point, 1, stands
    for the last timestep, and after the first timestep comes 0.
    """

    def __init__(self, *, schedule: VPSchedule) -> None:
        self.schedule = schedule

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        most = self.schedule.timesteps
        if not 1 < steps <= most:
            raise ValueError(f"sampler.steps={steps} must be from 2 to the schedule's {most} timesteps")
        timesteps = [round(i * (most - 1) / (steps - 1)) for i in range(steps)]
        times = [self.schedule.times[k] for k in reversed(timesteps)]
        return torch.tensor([1.0, *times[1:], 0.0], dtype=torch.float64)


class CustomGrid:
    """The given times, for exactly as many steps as they make."""

    def __init__(self, *, times: Sequence[Fraction]) -> None:
        descending = all(a > b for a, b in pairwise(times))
        if len(times) < 2 or times[0] != 1 or times[-1] != 0 or not descending:
            raise ValueError(f"sampler.grid.times={list(times)} must go down from 1 to 0")
        self.points = torch.tensor(times, dtype=torch.float64)

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        if steps != len(self.points) - 1:
            raise ValueError(
                f"sampler.steps={steps} does not fit sampler.grid.times, which make "
                f"{counted(len(self.points) - 1, 'step')}"
            )
        return self.points
