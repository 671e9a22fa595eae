"""Contrastive flow matching: velocities that are also far from those of other samples (arXiv 2506.05350)."""

from rfdit.batch import Condition, Latent
from rfdit.limits import BelowOne, Positive
from rfdit.objective.coupling import Coupling
from rfdit.objective.times import TimeSampler
from rfdit.objective.velocity import UNIFORM, VelocityMatching
from rfdit.objective.weighting import Weighting, check_not_learned
from rfdit.protocols import FlowLoss, VelocityNetwork
from rfdit.randomness import SampleGenerator


class ContrastiveFlowMatching:
    """E[w(t) (||v_theta(z_t, c, t) - v_i||^2 - contrast ||v_theta(z_t, c, t) - v_j||^2)], means over dimensions.

    v_i = z1 - z0 is the velocity of the sample itself, and v_j that of the next one of the batch.

    The minimiser is (E[v_i | z_t, c] - contrast E[v_j]) / (1 - contrast), so the field is not that of the flow:
    it is moved away from the mean velocity of all data, as guidance moves it away from the unconditional one, and
    both add up. `per_sample` is the error of v_i alone, so that it compares with other runs.
    A sample's loss depends on its neighbour, so on the batch size and the number of devices.

    time, coupling, weighting, shift: those of `VelocityMatching`.
    contrast: the paper's lambda.
    Raises ValueError for a contrast outside of [0, 1), a learned weighting, and a batch of one sample.
    """

    def __init__(
        self,
        *,
        time: TimeSampler,
        coupling: Coupling,
        weighting: Weighting = UNIFORM,
        shift: Positive = 1.0,
        contrast: BelowOne = 0.05,
    ) -> None:
        if not 0 <= contrast < 1:
            raise ValueError(f"objective.contrast={contrast} must lie between 0 and 1, without 1")
        check_not_learned(
            weighting, "has no minimum for losses below zero, which objective=contrastive can have"
        )
        self.matching = VelocityMatching(time=time, coupling=coupling, weighting=weighting, shift=shift)
        self.contrast = contrast

    def __call__(
        self, backbone: VelocityNetwork, z0: Latent, cond: Condition, *, generator: SampleGenerator
    ) -> FlowLoss:
        if len(z0) < 2 and self.contrast:
            raise ValueError(
                "objective=contrastive compares each sample with another one of its batch; give data.batch_size=2 or "
                "more on each device"
            )
        at = self.matching.evaluate(backbone, z0, cond, generator=generator)
        plain = at.error(at.target)
        if not self.contrast:
            return self.matching.loss(plain, at.t)
        other = at.error(at.target.roll(1, dims=0))
        loss = self.matching.loss(plain - self.contrast * other, at.t)
        parts = {"matching": plain.mean(), "contrast": other.mean()}
        return FlowLoss(total=loss.total, per_sample=plain.detach(), t=at.t, parts=parts)
