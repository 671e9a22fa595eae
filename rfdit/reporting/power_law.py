"""A power law through points, by least squares in logarithms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PowerLaw:
    """y = factor * x ** exponent. r_squared: of the logarithms. points: how many were fitted."""

    factor: float
    exponent: float
    r_squared: float
    points: int

    def __call__(self, x: float) -> float:
        return float(self.factor * x**self.exponent)


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """None below three points, for values that are not positive, and where all x are one."""
    if len(x) < 3 or min(*x, *y) <= 0 or not all(map(math.isfinite, (*x, *y))):
        return None
    log_x, log_y = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    centred = log_x - log_x.mean()
    if not np.any(np.abs(centred) > 1e-9):
        return None
    exponent = float(centred @ log_y / (centred @ centred))
    offset = float(log_y.mean() - exponent * log_x.mean())
    left = log_y - (offset + exponent * log_x)
    total = float(np.square(log_y - log_y.mean()).sum())
    r_squared = 1 - float(np.square(left).sum()) / total if total > 0 else 1.0
    return PowerLaw(math.exp(offset), exponent, r_squared, len(x))
