"""At which times the solver's steps begin and end."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from rfdit.flow import shift_time

Points = Float64[Tensor, "n"]


@runtime_checkable
class TimeGrid(Protocol):
    """A rule for the points of any number of steps."""

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        """steps + 1 times, from exactly 1 down to exactly 0.

        latent_size: (height, width) of what is sampled, for grids that depend on it.
        """
        ...


class UniformGrid:
    """Steps of equal length."""

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class ResolutionGrid:
    """Equal steps, shifted by sqrt(m / n) for latents of m places, n in training (arXiv 2403.03206, eq. 23).

    Larger latents need more noise to hide as much, so more of the steps go where there is much.
    base_size: the side of the (square) latents for which equal steps are right.
    """

    def __init__(self, *, base_size: int) -> None:
        if base_size < 1:
            raise ValueError(f"sampler.grid.base_size={base_size} must be at least 1")
        self.base_size = base_size

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        if latent_size is None:
            raise ValueError("the times of sampler.grid=ResolutionGrid depend on latent_size; give it")
        shift = math.sqrt(math.prod(latent_size)) / self.base_size
        return shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


class CosineGrid:
    """The noise levels of equal steps in a cosine schedule: finest in the middle (arXiv 2102.09672).

    There z = cos(pi u / 2) z0 + sin(pi u / 2) z1; the straight path has that ratio of noise to data
    at t = sin / (sin + cos), as `CosMapTime` has it in training.
    """

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        angle = math.pi / 2 * torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return angle.sin() / (angle.sin() + angle.cos())


class LastStepGrid:
    """Steps of equal length but for the last, of length `size`: a stochastic solver's denoising step.

    The score grows as 1 / t, so SiT's sampler comes no nearer to data than 0.04 (arXiv 2401.08740).
    """

    def __init__(self, *, size: float = 0.04) -> None:
        if not 0 < size < 1:
            raise ValueError(f"sampler.grid.size={size} must lie between 0 and 1")
        self.size = size

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        regular = torch.linspace(1, self.size, steps, dtype=torch.float64)
        return torch.cat([regular, torch.zeros(1, dtype=torch.float64)])


class CustomGrid:
    """The given times, for as many steps as they make."""

    def __init__(self, *, times: Sequence[float | int]) -> None:
        descending = all(a > b for a, b in pairwise(times))
        if len(times) < 2 or times[0] != 1 or times[-1] != 0 or not descending:
            raise ValueError(f"sampler.grid.times={list(times)} must go down from 1 to 0")
        self.points = torch.tensor(times, dtype=torch.float64)

    def __call__(self, steps: int, latent_size: tuple[int, int] | None) -> Points:
        if steps != len(self.points) - 1:
            raise ValueError(
                f"sampler.steps={steps} does not fit sampler.grid.times, which make {len(self.points) - 1} steps"
            )
        return self.points
