"""The adaptive method of Dormand and Prince (J. Comput. Appl. Math. 6, 1980)."""

import math

import torch
from torch import Tensor

from rfdit.batch import Latent
from rfdit.limits import Count, NotNegative
from rfdit.sampler.solvers import VelocityField


class Dopri5:
    """Dormand-Prince 5(4), RK45: order 5 with an embedded error estimate, which chooses the inner steps.

    rtol, atol: the error of an inner step, root mean square over a sample, is at most atol + rtol |z|.
        All samples of a batch share the steps that the most difficult of them needs.
    max_evaluations: limit for one outer step; ValueError beyond it, so that no rough field runs forever.
    """

    def __init__(
        self, *, rtol: NotNegative = 1e-4, atol: NotNegative = 1e-4, max_evaluations: Count = 1000
    ) -> None:
        if not (rtol >= 0 and atol >= 0 and 0 < rtol + atol < math.inf):
            raise ValueError(
                f"sampler.solver.rtol={rtol}, atol={atol} must not be negative, and one of them positive"
            )
        self.rtol, self.atol, self.max_evaluations = rtol, atol, max_evaluations

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        from torchdiffeq import odeint  # imports scipy, which other solvers do not need

        evaluations = 0

        def velocity(t: Tensor, z: Latent) -> Latent:
            nonlocal evaluations
            evaluations += 1
            if evaluations > self.max_evaluations:
                raise ValueError(
                    f"sampler.solver.max_evaluations={self.max_evaluations} did not suffice for "
                    f"rtol={self.rtol}, atol={self.atol}; raise it, or give larger tolerances"
                )
            return field(z, t)

        ends = torch.stack([t, t_next]).to(z.device, torch.float64)
        # step_t: land on t_next; by itself it steps beyond t = 0, where no network was trained, and interpolates.
        options = {"norm": _largest_rms, "step_t": ends[1:]}
        path: Tensor = odeint(
            velocity, z, ends, rtol=self.rtol, atol=self.atol, method="dopri5", options=options
        )
        return path[-1]


def _largest_rms(x: Tensor) -> Tensor:
    """The largest root mean square of a sample."""
    return x.flatten(1).square().mean(1).sqrt().max()
