"""Densities of the times at which the velocity is regressed (arXiv 2403.03206, sec. 3.1).

Those that have a density have it on (0, 1), in this project's convention: t = 1 is noise.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Protocol, runtime_checkable

import torch

from rfdit.batch import Time
from rfdit.device import constant
from rfdit.limits import Count, Finite, Limit, Positive
from rfdit.randomness import SampleGenerator


@runtime_checkable
class TimeSampler(Protocol):
    """A distribution of times above 0, up to 1."""

    def __call__(self, generator: SampleGenerator) -> Time:
        """One time for each sample of the generator, (b,), float32."""
        ...


class UniformTime:
    """t ~ U(0, 1)."""

    def __call__(self, generator: SampleGenerator) -> Time:
        return generator.uniform()


class LogitNormalTime:
    """t = sigmoid(mean + std n), n ~ N(0, 1): mostly in the middle, where the velocity is hardest (eq. 19)."""

    def __init__(self, *, mean: Finite = 0.0, std: Positive = 1.0) -> None:
        if not 0 < std < math.inf:
            raise ValueError(f"time.std={std} must be positive")
        self.mean, self.std = mean, std

    def __call__(self, generator: SampleGenerator) -> Time:
        return torch.sigmoid(self.mean + self.std * generator.normal())


MOST = 2 / (math.pi - 2)  # beyond it times are no longer in order
ModeScale = Annotated[float, Limit(f"from -1 to {MOST:.3f}", lambda x: -1 <= x <= MOST)]


class ModeTime:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u ~ U(0, 1): a mode in the middle or at the ends (eq. 20).

    scale: between -1 and 2 / (pi - 2), where the map is monotonic; 0 is uniform.
    """

    def __init__(self, *, scale: ModeScale = 1.29) -> None:
        if not -1 <= scale <= MOST:
            raise ValueError(f"time.scale={scale} must lie between -1 and {MOST:.3f}")
        self.scale = scale

    def __call__(self, generator: SampleGenerator) -> Time:
        u = generator.uniform()
        return 1 - u - self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


class CosMapTime:
    """t = 1 - 1 / (tan(pi u / 2) + 1), u ~ U(0, 1): the log-SNR density of the cosine schedule (eq. 21)."""

    def __call__(self, generator: SampleGenerator) -> Time:
        return 1 - 1 / (torch.tan(math.pi / 2 * generator.uniform()) + 1)


class StepTime:
    """t = k / steps, k from 1 to steps with equal probability: the times at which Euler's method takes its steps.

    With one step it is t = 1 alone, so that on the pairs of `coupling=recorded` the objective of rectified flow is
    that of a distillation to one step, E||(z1 - z0) - v_theta(z1, c, 1)||^2 (arXiv 2209.03003, sec. 2.2; 2309.06380).
    """

    def __init__(self, *, steps: Count = 1) -> None:
        self.steps = steps

    def __call__(self, generator: SampleGenerator) -> Time:
        return ((self.steps * generator.uniform()).floor() + 1) / self.steps


@runtime_checkable
class NoiseSchedule(Protocol):
    """The timesteps of a variance-preserving diffusion, as times of the straight path.

    timesteps: their number.
    """

    timesteps: int

    @property
    def times(self) -> Sequence[float]:
        """The time of each timestep, ascending."""
        ...

    @property
    def alpha_bars(self) -> Sequence[float]:
        """abar of each timestep, descending."""
        ...

    def timestep(self, t: Time) -> Time:
        """The number of the timestep of each time, a whole number at the timesteps themselves."""
        ...


@runtime_checkable
class DrawsTimesteps(Protocol):
    """A `TimeSampler` whose times are the timesteps of a schedule."""

    schedule: NoiseSchedule


class TimestepTime:
    """The time of one of a schedule's timesteps, each as likely as the others (DDPM, arXiv 2006.11239, alg. 1)."""

    def __init__(self, *, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def __call__(self, generator: SampleGenerator) -> Time:
        u = generator.uniform()
        return constant(tuple(self.schedule.times), like=u)[(self.schedule.timesteps * u).long()]
