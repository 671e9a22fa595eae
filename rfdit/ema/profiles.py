"""Profiles: the rate at which an average follows the weights, step by step."""

import math
from typing import Protocol, runtime_checkable

import numpy as np

from rfdit.limits import BelowOne, Positive

# The relative standard deviation of the uniform average over all steps, whose power is zero.
WIDEST = 12**-0.5


@runtime_checkable
class Profile(Protocol):
    """The weighting of steps in an average."""

    def rate(self, step: int) -> float:
        """The rate of the n-th step, average += rate (weights - average); 1 for the first."""
        ...


@runtime_checkable
class PowerLength(Profile, Protocol):
    """A power function profile, whose snapshots are averages of other lengths later. std: its length."""

    std: float


class FixedDecay:
    """Exponential moving average: rate 1 - decay at every step.

    decay: 0.9999 in DiT and SiT.
    warmup: a decay of at most n / (9 + n) in the n-th step, so that short runs are averaged too.
    Raises ValueError for a decay outside [0, 1).
    """

    def __init__(self, *, decay: BelowOne = 0.9999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.profiles.*.decay={decay} must be at least 0 and less than 1")
        self.decay, self.warmup = decay, warmup

    def rate(self, step: int) -> float:
        return 1 - (min(self.decay, step / (9 + step)) if self.warmup else self.decay)


class PowerFunction:
    """Power function average: step t of T has a weight proportional to t^power.

    Its length grows with the run, and early weights are forgotten (EDM2, Karras et al., arXiv
    2312.02696, sec. 3).

    std: its length, the standard deviation of the averaged steps relative to T; 0.05 to 0.10 in EDM2.
    """

    def __init__(self, *, std: Positive) -> None:
        self.std = std
        self.power = power_of(std, setting="callbacks.ema.profiles.*.std")

    def rate(self, step: int) -> float:
        """1 - (1 - 1/t)^(power + 1), with which the weight of step t is the integral of the profile over [t - 1, t]."""
        return -math.expm1((self.power + 1) * math.log1p(-1 / step)) if step > 1 else 1.0


def power_of(std: float, *, setting: str) -> float:
    """The power of the profile with a relative standard deviation (EDM2, sec. 3 and appendix C).

    It solves std^2 = (power + 1) / ((power + 2)^2 (power + 3)).
    setting: the name of `std` in the configuration, for the ValueError if no profile has it.
    """
    if not 0 < std < WIDEST:
        raise ValueError(
            f"{setting}={std} must be more than 0 and less than {WIDEST:.4f}, the uniform average's"
        )
    # Multiplied out.
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())
