"""The stochastic process with the flow's marginals (SiT, arXiv 2401.08740, sec. 2.3).

dz = v dt - w/2 s dt + sqrt(w) dW, backwards in time, with the score s of the density at t and any
w(t) >= 0. On the straight path s = -E[z1 | z_t] / t, so it follows from the velocity.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rfdit.batch import Latent
from rfdit.flow import data_from_velocity, noise_from_velocity
from rfdit.sampler.solvers import VelocityField


@runtime_checkable
class Diffusion(Protocol):
    """How much noise is added, and taken away again, on the way."""

    def __call__(self, t: Tensor) -> Tensor:
        """w(t) of the paper; its published code states w / 2."""
        ...


class SigmaDiffusion:
    """w = scale t, as the path's own noise; on the straight path SiT's "sigma" and "linear" alike."""

    def __init__(self, *, scale: float = 1.0) -> None:
        self.scale = _not_negative(scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * t


class ConstantDiffusion:
    """w = scale."""

    def __init__(self, *, scale: float = 1.0) -> None:
        self.scale = _not_negative(scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.ones_like(t)


class SineDiffusion:
    """w = scale sin^2(pi t): none at either end, most in the middle."""

    def __init__(self, *, scale: float = 1.0) -> None:
        self.scale = _not_negative(scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.sin(math.pi * t) ** 2


class DecreasingDiffusion:
    """w = scale sin^4(pi t / 2): most at noise, and close to none from t = 0.2 on."""

    def __init__(self, *, scale: float = 1.0) -> None:
        self.scale = _not_negative(scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.sin(math.pi / 2 * t) ** 4


class EulerMaruyama:
    """First order (in distribution), one evaluation a step; w = 0 is Euler's method.

    The step to t = 0 adds no noise, since nothing would take it away: it goes to E[z0 | z_t], which
    on the straight path is Euler's step. `LastStepGrid` sets its size.
    """

    def __init__(self, *, diffusion: Diffusion) -> None:
        self.diffusion = diffusion

    def noisy_step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor, noise: Latent) -> Latent:
        v, each = field(z, t), t.to(z.device).expand(len(z))
        if t_next == 0:
            return data_from_velocity(z, v, each)
        dt, w = t - t_next, self.diffusion(t)
        score = -noise_from_velocity(z, v, each) / t
        return z - dt * (v - w / 2 * score) + torch.sqrt(w * dt) * noise


def _not_negative(scale: float) -> float:
    """`scale` itself; raises ValueError below 0."""
    if scale < 0:
        raise ValueError(f"sampler.solver.diffusion.scale={scale} must not be negative")
    return scale
