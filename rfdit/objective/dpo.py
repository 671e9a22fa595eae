"""Diffusion-DPO: tuning by pairs of images, of which one is preferred (arXiv 2311.12908; SD3, 2403.03206, app. C)."""

import math

import torch
import torch.nn.functional as F

from rfdit import flow
from rfdit.batch import Condition, Latent
from rfdit.limits import Positive
from rfdit.objective.coupling import Coupling
from rfdit.objective.times import TimeSampler
from rfdit.objective.velocity import UNIFORM, VelocityMatching, squared_error, target_of
from rfdit.objective.weighting import Weighting, check_not_learned
from rfdit.protocols import FlowLoss, VelocityNetwork
from rfdit.randomness import SampleGenerator


class DiffusionDPO:
    """E[-log sigmoid(m)], with the margin m between a preferred image z0^w and a rejected one z0^l of one condition,

        m = -beta / 2 w(t) ((e^w - e_ref^w) - (e^l - e_ref^l))
        e = ||v_theta(z_t, c, t) - (z1 - z0)||^2        the mean over latent dimensions

    where e_ref is the error of a frozen reference, and both images of a pair have the same time, noise and condition.
    The loss is log 2 where the network is the reference; its derivative with respect to the difference of the two
    differences is beta / 2 sigmoid(-m), so beta / 4 there, for w = 1.

    `per_sample` is the error of the preferred image. The log has the share of pairs with m > 0 as `accuracy`, ties
    counted one half, m as `margin`, and e - e_ref of both images as `preferred` and `rejected`.

    time, coupling, weighting, shift: those of `VelocityMatching`; the coupling is that of the preferred image.
    beta: how closely the network keeps to its reference. Errors are means over dimensions, not sums, as in the code of
        arXiv 2311.12908. That has 5000, for errors of the noise, which `weighting=noise` makes of the velocity's.
    Raises ValueError for a beta or shift that is not positive, and for a learned weighting.
    """

    compares_pairs = True

    def __init__(
        self,
        *,
        time: TimeSampler,
        coupling: Coupling,
        weighting: Weighting = UNIFORM,
        shift: Positive = 1.0,
        beta: Positive = 2000.0,
    ) -> None:
        if not 0 < beta < math.inf:
            raise ValueError(f"objective.beta={beta} must be positive")
        check_not_learned(weighting, "is for the error of one image, which objective=dpo does not minimise")
        self.matching = VelocityMatching(time=time, coupling=coupling, weighting=weighting, shift=shift)
        self.beta = beta

    def __call__(
        self,
        backbone: VelocityNetwork,
        z0: Latent,
        cond: Condition,
        *,
        generator: SampleGenerator,
        reference: VelocityNetwork,
    ) -> FlowLoss:
        """As of `ComparesPairs`."""
        pairs = len(z0) // 2
        z1 = self.matching.coupling(z0[:pairs], cond[slice(pairs)], generator=generator).repeat(2, 1, 1, 1)
        t = self.matching.draw_time(generator.fork("time")).repeat(2)
        z_t, target = flow.interpolate(z0, z1, t), target_of(backbone, z0, z1, t)
        with torch.no_grad():
            reference_error = squared_error(reference(z_t, t, cond), target)
        error = squared_error(backbone(z_t, t, cond), target)
        preferred, rejected = (error - reference_error).chunk(2)
        margin = -self.beta / 2 * self.matching.weighting(t[:pairs]) * (preferred - rejected)
        return FlowLoss(
            total=-F.logsigmoid(margin).mean(),
            per_sample=error[:pairs].detach(),
            t=t[:pairs],
            parts={
                "accuracy": (1 + margin.sign()).mean() / 2,
                "margin": margin.mean(),
                "preferred": preferred.mean(),
                "rejected": rejected.mean(),
            },
        )
