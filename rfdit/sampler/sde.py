"""The stochastic process with the flow's marginals (SiT, arXiv 2401.08740, sec. 2.3).

dz = v dt - w/2 s dt + sqrt(w) dW, backwards in time, with the score s of the density at t and any
w(t) >= 0. On the straight path s = -E[z1 | z_t] / t, so it follows from the velocity.
"""

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from rfdit.batch import Latent
from rfdit.flow import data_from_velocity, noise_from_velocity
from rfdit.limits import NotNegative
from rfdit.sampler.solvers import VelocityField

LastStep = Literal["mean", "euler", "tweedie", "none"]


@runtime_checkable
class Diffusion(Protocol):
    """The diffusion coefficient w(t): how much noise is added, and removed again, at t."""

    def __call__(self, t: Tensor) -> Tensor:
        """w(t) of the paper; its published code states w / 2."""
        ...


class SigmaDiffusion:
    """w = scale t, as the noise of the path; on the straight path both SiT's "sigma" and "linear"."""

    def __init__(self, *, scale: NotNegative = 1.0) -> None:
        self.scale = _not_negative(scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * t


class ConstantDiffusion:
    """w = scale."""

    def __init__(self, *, scale: NotNegative = 1.0) -> None:
        self.scale = _not_negative(scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.ones_like(t)


class SineDiffusion:
    """w = scale sin^2(pi t): none at either end, most in the middle."""

    def __init__(self, *, scale: NotNegative = 1.0) -> None:
        self.scale = _not_negative(scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.sin(math.pi * t) ** 2


class DecreasingDiffusion:
    """w = scale sin^4(pi t / 2): most at noise, and close to none from t = 0.2 on."""

    def __init__(self, *, scale: NotNegative = 1.0) -> None:
        self.scale = _not_negative(scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.sin(math.pi / 2 * t) ** 4


class EulerMaruyama:
    """Euler-Maruyama: weak order 1, one evaluation per step; with w = 0 it is Euler's method.

    z <- z - dt (v - w/2 s) + sqrt(w dt) noise. `LastStepGrid` sets the size of the step to t = 0.

    last_step: what this step is, as SiT's code calls it: `euler` and `tweedie` go to E[z0 | z_t], which on
        the straight path is Euler's step of the ODE; `mean` is the step without its noise, as in SiT's
        and REPA's scripts; `none` is a step as any other, whose noise stays in the image.
    """

    def __init__(self, *, diffusion: Diffusion, last_step: LastStep = "euler") -> None:
        self.diffusion, self.last_step = diffusion, last_step

    def noisy_step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor, noise: Latent) -> Latent:
        v, each = field(z, t), t.to(z.device).expand(len(z))
        if t_next == 0 and self.last_step in ("euler", "tweedie"):
            return data_from_velocity(z, v, each)
        dt, w = t - t_next, self.diffusion(t)
        score = -noise_from_velocity(z, v, each) / t
        mean = z - dt * (v - w / 2 * score)
        return mean if t_next == 0 and self.last_step == "mean" else mean + torch.sqrt(w * dt) * noise


def _not_negative(scale: float) -> float:
    """Returns `scale`; raises ValueError below 0, and for infinity and NaN."""
    if not 0 <= scale < math.inf:
        raise ValueError(f"sampler.solver.diffusion.scale={scale} must be at least 0 and finite")
    return scale
