"""How much of each step's weights an average takes up."""

import math
from typing import Protocol, runtime_checkable

import numpy as np

# Of the uniform average over all steps, where the power is zero.
WIDEST = 12**-0.5


@runtime_checkable
class Profile(Protocol):
    """Decides an average's weighting of the steps."""

    def rate(self, step: int) -> float:
        """The share that the new weights have after an average's n-th step; the first is 1."""
        ...


class FixedDecay:
    """The same share at every step: older weights fade exponentially.

    decay: how much of the average a step keeps; 0.9999 in DiT and SiT.
    warmup: keep less at first, n / (9 + n) in the n-th step, so that short runs are averaged too.
    """

    def __init__(self, *, decay: float = 0.9999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.profiles.*.decay={decay} must be at least 0 and less than 1")
        self.decay, self.warmup = decay, warmup

    def rate(self, step: int) -> float:
        return 1 - (min(self.decay, step / (9 + step)) if self.warmup else self.decay)


class PowerFunction:
    """Weights step t of T by t^power: the average grows with the run, and forgets where it began.

    std: its length, as the standard deviation of the steps that it averages over, relative to the
        run's: 0.05 to 0.10 in EDM2 (Karras et al., arXiv 2312.02696, sec. 3).
    """

    def __init__(self, *, std: float) -> None:
        self.std = std
        self.power = power_of(std, setting="callbacks.ema.profiles.*.std")

    def rate(self, step: int) -> float:
        """1 - (1 - 1/t)^(power + 1): makes step t's weight the integral of the profile over [t - 1, t]."""
        return -math.expm1((self.power + 1) * math.log1p(-1 / step)) if step > 1 else 1.0


def power_of(std: float, *, setting: str) -> float:
    """The power of the profile with a relative standard deviation (EDM2, sec. 3 and appendix C).

    setting: its name in the configuration, for the ValueError where there is no such profile.
    """
    if not 0 < std < WIDEST:
        raise ValueError(
            f"{setting}={std} must be more than 0 and less than {WIDEST:.4f}, the uniform average's"
        )
    # std^2 = (power + 1) / ((power + 2)^2 (power + 3)), multiplied out.
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())
