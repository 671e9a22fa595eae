"""Rectified flow's objective: regress the straight path's velocity (arXiv 2209.03003, eq. 1)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rfdit import flow
from rfdit.batch import Condition, Latent, Time
from rfdit.objective.coupling import Coupling
from rfdit.objective.times import TimeSampler
from rfdit.protocols import Backbone
from rfdit.randomness import SampleGenerator


@dataclass(frozen=True)
class FlowLoss:
    """total: the mean that is minimised. per_sample, t: each sample's loss, detached, and its time."""

    total: Float[Tensor, ""]
    per_sample: Float[Tensor, "b"]
    t: Time


class VelocityMatching:
    """E ||v_theta(z_t, c, t) - (z1 - z0)||^2, the mean over latent dimensions and samples.

    time: the density of times. shift: moves them towards noise (> 1) for large latents.
    coupling: which noise goes with which latent.
    """

    def __init__(self, *, time: TimeSampler, coupling: Coupling, shift: float = 1.0) -> None:
        if shift <= 0:
            raise ValueError(f"objective.shift={shift} must be positive")
        self.time, self.coupling, self.shift = time, coupling, shift

    def __call__(
        self, backbone: Backbone, z0: Latent, cond: Condition, *, generator: SampleGenerator
    ) -> FlowLoss:
        z1 = self.coupling(z0, generator.fork("noise").normal(*z0.shape[1:]))
        t = flow.shift_time(self.time(generator.fork("time")), self.shift)
        v = backbone(flow.interpolate(z0, z1, t), t, cond)
        per_sample = (v.float() - flow.velocity(z0, z1)).square().flatten(1).mean(1)
        return FlowLoss(total=per_sample.mean(), per_sample=per_sample.detach(), t=t)
