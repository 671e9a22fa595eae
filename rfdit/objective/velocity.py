"""The objective of rectified flow: regress the velocity of the straight path (arXiv 2209.03003, eq. 1)."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from rfdit import flow
from rfdit.batch import Condition, Latent, Time
from rfdit.limits import Positive
from rfdit.objective.coupling import Coupling
from rfdit.objective.times import TimeSampler
from rfdit.objective.weighting import LearnedWeighting, UniformWeighting, Weighting
from rfdit.protocols import FlowLoss, SetsTarget, VelocityNetwork
from rfdit.randomness import SampleGenerator

UNIFORM = UniformWeighting()


class VelocityMatching:
    """E[w(t) ||v_theta(z_t, c, t) - (z1 - z0)||^2], the mean over latent dimensions and samples.

    time: the density from which t is drawn. shift: moves times towards noise (> 1) for large latents.
    A network whose velocity is clamped where it is a quotient has the target clamped likewise (`SetsTarget`).
    coupling: pairs noise z1 with data z0.
    weighting: w(t). It is in `total` alone, so that `per_sample` can be compared between runs; so is the penalty of a
        learned one, beside which the mean of `per_sample` is logged.
    Raises ValueError for a shift that is not positive.
    """

    def __init__(
        self, *, time: TimeSampler, coupling: Coupling, weighting: Weighting = UNIFORM, shift: Positive = 1.0
    ) -> None:
        if not 0 < shift < math.inf:
            raise ValueError(f"objective.shift={shift} must be positive")
        self.time, self.coupling, self.weighting, self.shift = time, coupling, weighting, shift

    @property
    def layers(self) -> nn.Module | None:
        """The weighting, if it is learned (`OwnsLayers`)."""
        return self.weighting if isinstance(self.weighting, nn.Module) else None

    def __call__(
        self, backbone: VelocityNetwork, z0: Latent, cond: Condition, *, generator: SampleGenerator
    ) -> FlowLoss:
        at = self.evaluate(backbone, z0, cond, generator=generator)
        return self.loss(at.error(at.target), at.t)

    def evaluate(
        self, backbone: VelocityNetwork, z0: Latent, cond: Condition, *, generator: SampleGenerator
    ) -> "Evaluated":
        """The network at one point of each sample's path, for objectives with more terms than this one."""
        z1, t = self.coupling(z0, cond, generator=generator), self.draw_time(generator.fork("time"))
        z_t = flow.interpolate(z0, z1, t)
        v = backbone(z_t, t, cond)
        return Evaluated(z_t, v, target_of(backbone, z0, z1, t), t)

    def draw_time(self, generator: SampleGenerator) -> Time:
        """A time for each sample."""
        return flow.shift_time(self.time(generator), self.shift)

    def loss(self, per_sample: Float[Tensor, "b"], t: Time) -> FlowLoss:
        """The weighted mean of the losses of samples at their times."""
        w, error = self.weighting(t), per_sample.detach()
        if not isinstance(self.weighting, LearnedWeighting):
            return FlowLoss(total=(w * per_sample).mean(), per_sample=error, t=t)
        total = (w * per_sample + self.weighting.penalty(w)).mean()
        return FlowLoss(total=total, per_sample=error, t=t, parts={"unweighted": error.mean()})


@dataclass(frozen=True)
class Evaluated:
    """A network's velocity v at z_t, the points of times t, and the velocity that it is to have."""

    z_t: Latent
    v: Latent
    target: Latent
    t: Time

    def error(self, target: Latent) -> Float[Tensor, "b"]:
        """`squared_error` of the network's velocity."""
        return squared_error(self.v, target)


def target_of(backbone: VelocityNetwork, z0: Latent, z1: Latent, t: Time) -> Latent:
    """The velocity on which a network is regressed at z_t: z1 - z0, or its own target (`SetsTarget`)."""
    return backbone.target(z0, z1, t) if isinstance(backbone, SetsTarget) else flow.velocity(z0, z1)


def squared_error(v: Latent, target: Latent) -> Float[Tensor, "b"]:
    """||v - target||^2, the mean over latent dimensions, float32."""
    return (v.float() - target).square().flatten(1).mean(1)
