"""Distillation of guidance into a network that takes its scale as an input (arXiv 2210.03142, sec. 3.1)."""

import math
from dataclasses import replace
from typing import Annotated

from torch import nn

from rfdit.batch import Condition, Latent
from rfdit.flow import per_sample
from rfdit.limits import Limit, Positive
from rfdit.objective.coupling import Coupling
from rfdit.objective.needs import Teacher
from rfdit.objective.times import TimeSampler
from rfdit.objective.velocity import UNIFORM, VelocityMatching
from rfdit.objective.weighting import Weighting
from rfdit.protocols import FlowLoss, VelocityNetwork, takes_guidance
from rfdit.randomness import SampleGenerator

MaxScale = Annotated[float, Limit("at least 1", lambda x: 1 <= x < math.inf)]


class GuidanceDistillation:
    """E[w(t) ||v_theta(z_t, c, t, s) - (u + s (c - u))||^2], s ~ U(1, max_scale), means over dimensions.

    c and u are the velocities of a frozen teacher at z_t under the sample's condition and under the null one, so that
    the network has at one evaluation, for every s, what classifier-free guidance makes of two. z_t and t are those of
    `VelocityMatching`.

    teacher: the other network. time, coupling, weighting, shift: those of `VelocityMatching`.
    max_scale: the largest scale that is learned; the paper's is 15.
    Raises ValueError without a teacher, and for a network that does not take the scale.
    """

    def __init__(
        self,
        *,
        teacher: Teacher | None,
        time: TimeSampler,
        coupling: Coupling,
        weighting: Weighting = UNIFORM,
        shift: Positive = 1.0,
        max_scale: MaxScale = 8.0,
    ) -> None:
        if teacher is None:
            raise ValueError(
                "objective=guidance_distillation learns from another network; give teacher=weights teacher.ckpt=RUN"
            )
        self.teacher, self.max_scale = teacher, max_scale
        self.matching = VelocityMatching(time=time, coupling=coupling, weighting=weighting, shift=shift)

    @property
    def layers(self) -> nn.Module | None:
        """As of `VelocityMatching`."""
        return self.matching.layers

    def __call__(
        self, backbone: VelocityNetwork, z0: Latent, cond: Condition, *, generator: SampleGenerator
    ) -> FlowLoss:
        if not takes_guidance(backbone):
            raise ValueError(
                "objective=guidance_distillation needs a model that takes the scale of guidance as an input; give "
                "model.guidance=3, the scale at which it is evaluated by default"
            )
        scale = 1 + (self.max_scale - 1) * generator.fork("scale").uniform()
        at = self.matching.evaluate(backbone, z0, replace(cond, guidance=scale), generator=generator)
        c, u = self.teacher(at.z_t, at.t)
        target = u + per_sample(scale, u) * (c - u)
        return self.matching.loss(at.error(target), at.t)
