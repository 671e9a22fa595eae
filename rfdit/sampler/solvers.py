"""Fixed-step solvers of dz/dt = v, from noise (t = 1) to data (t = 0) or back.

With dt = t - t_next, a step of Euler's method is z - dt v(z, t).
"""

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from rfdit.batch import Latent
from rfdit.protocols import VelocityNetwork

VelocityField = Callable[[Latent, Tensor], Latent]  # (z, t of shape ()) -> v


@runtime_checkable
class Solver(Protocol):
    """A method for the ordinary differential equation."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        """z at t_next, given z at t; t_next < t samples, t_next > t inverts."""
        ...


@runtime_checkable
class AdaptiveSolver(Solver, Protocol):
    """A solver that chooses the number of its evaluations itself, by the field.

    max_evaluations: the limit for one outer step.
    """

    max_evaluations: int


@runtime_checkable
class StochasticSolver(Protocol):
    """A method for the stochastic differential equation; its noise is an argument."""

    def noisy_step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor, noise: Latent) -> Latent:
        """z at t_next < t, given z at t and standard normal noise."""
        ...


@runtime_checkable
class ReadsNetwork(Protocol):
    """A solver that uses more of a network than its velocity."""

    def reading(self, network: VelocityNetwork) -> "tuple[Solver | StochasticSolver, VelocityNetwork]":
        """The solver for one network, and the network to guide in place of it; ValueError for one that lacks it."""
        ...

    def alone(self) -> "Solver | StochasticSolver":
        """A solver of as many evaluations for networks of which only velocities are known."""
        ...


@runtime_checkable
class UsesMeanVelocities(Protocol):
    """A solver whose steps take the mean velocity over them, which is guided in training, if at all.

    mean_velocities: True if they do.
    """

    mean_velocities: bool


class Euler:
    """Order 1, one evaluation per step; on the straight path, the deterministic step of DDIM."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        return z - (t - t_next) * field(z, t)


class Heun:
    """Order 2, two evaluations per step: the mean of the slopes at both ends.

    Also called the explicit trapezoidal rule; EDM samples with it. Not the midpoint method.

    last_step: `euler` takes Euler's step to t = 0, one evaluation, as EDM's and REPA's code do; `none` has no
        other step there.
    """

    def __init__(self, *, last_step: Literal["none", "euler"] = "none") -> None:
        self.last_step = last_step

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        slope = field(z, t)
        if t_next == 0 and self.last_step == "euler":
            return z - t * slope
        ahead = field(z - (t - t_next) * slope, t_next)
        return z - (t - t_next) * (slope + ahead) / 2


class Midpoint:
    """Order 2, two evaluations per step: the slope in the middle; the field is not evaluated at t_next."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        dt = t - t_next
        return z - dt * field(z - dt / 2 * field(z, t), t - dt / 2)


class RK4:
    """Order 4, four evaluations per step: the classical Runge-Kutta method, with fixed steps."""

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        dt = t - t_next
        k1 = field(z, t)
        k2 = field(z - dt / 2 * k1, t - dt / 2)
        k3 = field(z - dt / 2 * k2, t - dt / 2)
        k4 = field(z - dt * k3, t_next)
        return z - dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
