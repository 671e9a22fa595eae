"""Steps of dz/dt = v from noise (t = 1) to data (t = 0)."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from rfdit.batch import Latent

VelocityField = Callable[[Latent, Tensor], Latent]  # (z, t of shape ()) -> v


@runtime_checkable
class Solver(Protocol):
    """One step of an ODE method."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        """z at t_next < t, given z at t."""
        ...


class Euler:
    """First order, one evaluation a step."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        return z - (t - t_next) * field(z, t)


class Heun:
    """Second order, two evaluations a step: the mean of the slopes at both ends."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        slope = field(z, t)
        ahead = field(z - (t - t_next) * slope, t_next)
        return z - (t - t_next) * (slope + ahead) / 2
