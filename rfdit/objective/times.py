"""At which times the velocity is regressed (arXiv 2403.03206, sec. 3.1).

Every sampler maps random numbers to times in (0, 1), all oriented to this project's t: 1 is noise.
"""

import math
from typing import Protocol, runtime_checkable

import torch

from rfdit.batch import Time
from rfdit.randomness import SampleGenerator


@runtime_checkable
class TimeSampler(Protocol):
    """A density of times on (0, 1)."""

    def __call__(self, generator: SampleGenerator) -> Time:
        """One time for each of the generator's samples."""
        ...


class UniformTime:
    """t ~ U(0, 1)."""

    def __call__(self, generator: SampleGenerator) -> Time:
        return generator.uniform()


class LogitNormalTime:
    """t = sigmoid(mean + std n), n ~ N(0, 1): most often in the middle, where velocity is hard (eq. 19)."""

    def __init__(self, *, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0:
            raise ValueError(f"time.std={std} must be positive")
        self.mean, self.std = mean, std

    def __call__(self, generator: SampleGenerator) -> Time:
        return torch.sigmoid(self.mean + self.std * generator.normal())


class ModeTime:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), with a tunable mode in the middle or at the ends (eq. 20).

    scale: between -1 and 2 / (pi - 2), where the map is monotonic; 0 is uniform.
    """

    def __init__(self, *, scale: float = 1.29) -> None:
        if not -1 <= scale <= 2 / (math.pi - 2):
            raise ValueError(f"time.scale={scale} must lie between -1 and {2 / (math.pi - 2):.3f}")
        self.scale = scale

    def __call__(self, generator: SampleGenerator) -> Time:
        u = generator.uniform()
        return 1 - u - self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


class CosMapTime:
    """t = 1 - 1 / (tan(pi u / 2) + 1): the cosine schedule's log-SNR density (eq. 21)."""

    def __call__(self, generator: SampleGenerator) -> Time:
        return 1 - 1 / (torch.tan(math.pi / 2 * generator.uniform()) + 1)
