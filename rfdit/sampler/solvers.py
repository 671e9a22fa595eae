"""Steps of dz/dt = v from noise (t = 1) to data (t = 0), or back."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from rfdit.batch import Latent

VelocityField = Callable[[Latent, Tensor], Latent]  # (z, t of shape ()) -> v


@runtime_checkable
class Solver(Protocol):
    """One step of an ODE method."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        """z at t_next, given z at t; t_next < t samples, t_next > t inverts."""
        ...


@runtime_checkable
class StochasticSolver(Protocol):
    """One step of an SDE method; its randomness is an argument."""

    def noisy_step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor, noise: Latent) -> Latent:
        """z at t_next < t, given z at t and standard normal noise."""
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


class Midpoint:
    """Second order, two evaluations a step: the slope in the middle; t_next itself is not evaluated."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        dt = t - t_next
        return z - dt * field(z - dt / 2 * field(z, t), t - dt / 2)


class RK4:
    """Fourth order, four evaluations a step: the classical method of Runge and Kutta."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        dt = t - t_next
        k1 = field(z, t)
        k2 = field(z - dt / 2 * k1, t - dt / 2)
        k3 = field(z - dt / 2 * k2, t - dt / 2)
        k4 = field(z - dt * k3, t_next)
        return z - dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
