"""MeanFlow: the mean velocity over any time, for samples in one step (arXiv 2505.13447; improved in 2512.02012)."""

import math
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from rfdit import flow
from rfdit.batch import Condition, Latent, Time
from rfdit.flow import per_sample
from rfdit.limits import BelowOne, Fraction, NotNegative, Positive
from rfdit.objective.coupling import Coupling
from rfdit.objective.times import TimeSampler
from rfdit.objective.velocity import UNIFORM, VelocityMatching, squared_error
from rfdit.objective.weighting import Weighting, check_not_learned
from rfdit.protocols import FlowLoss, SetsTarget, VelocityNetwork, takes_durations
from rfdit.randomness import SampleGenerator

Tangent = Literal["sample", "prediction"]


class MeanFlow:
    """E[w(t) a |u_theta(z_t, r, t, c) - u_tgt|^2], where u is the mean velocity over the time from r to t.

        u(z_t, r, t) = (t - r)^-1 int_r^t v(z_s, s) ds,    so that z_r = z_t - (t - r) u(z_t, r, t)

    Its derivative along the path gives the target, without an integral (eq. 6 and 10):

        u_tgt = v - (t - r) du/dt,    du/dt = v d_z u + d_t u with r held, of the network itself, without gradient

    |.|^2 is the sum over latent dimensions, and a = (|u - u_tgt|^2 + epsilon)^-power, without gradient, so that at
    power 1 all samples count alike (sec. 4.3). Where r = t, u is the velocity v, and u_tgt is z1 - z0.

    The target may be guided (sec. 4.2, app. B.5), so that samples need no guidance and one evaluation: in place of
    v = z1 - z0 it has

        v = omega (z1 - z0) + kappa u(z_t, t, t, c) + (1 - omega - kappa) u(z_t, t, t, null)

    of which the fixed point is the velocity under guidance of the scale omega / (1 - kappa). With omega = 1 and kappa =
    1 - 1 / scale it is that of the improved method. Samples whose condition was dropped have z1 - z0.

    time: a density from which two times are drawn, the later of which is t and the other r. shift: that of
        `VelocityMatching`, of both. equal: probability with which r is t instead.
    tangent: the v in du/dt: `sample` has that of the target, `prediction` the network's own u(z_t, t, t, c), which does
        not depend on the sample's noise, as in the improved method. Both have the same mean.
    low, high: times between which the target is guided.
    The derivative is that of the network in training mode; only its attention is not fused.
    Costs about two forward passes beside those of `VelocityMatching`, and one more for each velocity of the network
    in tangent and target.

    Raises ValueError for settings outside of their limits, a learned weighting, a network without durations or of
    another prediction, and layers without forward-mode derivatives.
    """

    def __init__(
        self,
        *,
        time: TimeSampler,
        coupling: Coupling,
        weighting: Weighting = UNIFORM,
        shift: Positive = 1.0,
        equal: Fraction = 0.75,
        tangent: Tangent = "sample",
        power: NotNegative = 1.0,
        epsilon: Positive = 0.01,
        omega: Positive = 1.0,
        kappa: BelowOne = 0.0,
        low: Fraction = 0.0,
        high: Fraction = 1.0,
    ) -> None:
        if not (0 < omega < math.inf and 0 <= kappa < 1):
            raise ValueError(
                f"objective.omega={omega}, kappa={kappa} must be above 0, and at least 0 and less than 1: the scale of "
                "guidance is omega / (1 - kappa)"
            )
        if not 0 <= low < high <= 1:
            raise ValueError(f"objective.low={low}, high={high} must be an interval within 0 and 1")
        check_not_learned(
            weighting, "evens out losses, which objective=meanflow does itself by objective.power"
        )
        self.matching = VelocityMatching(time=time, coupling=coupling, weighting=weighting, shift=shift)
        self.equal, self.tangent, self.power, self.epsilon = equal, tangent, power, epsilon
        self.omega, self.kappa, self.low, self.high = omega, kappa, low, high

    @property
    def guided(self) -> bool:
        """As of `GuidesTarget`."""
        return (self.omega, self.kappa) != (1, 0)

    def __call__(
        self,
        backbone: VelocityNetwork,
        z0: Latent,
        cond: Condition,
        *,
        generator: SampleGenerator,
        null: Condition | None = None,
        kept: Bool[Tensor, "b"] | None = None,
    ) -> FlowLoss:
        check_network(backbone)
        z1 = self.matching.coupling(z0, cond, generator=generator)
        t, r = self.times(generator)
        z_t, over = flow.interpolate(z0, z1, t), per_sample(t - r, z0)
        with torch.no_grad():
            v, tangent = self._velocities(backbone, z_t, t, cond, flow.velocity(z0, z1), null, kept)
            target = v - over * total_derivative(backbone, z_t, t, cond, t - r, tangent)
        # Last, since auxiliary losses read the states of the pass with gradients.
        u = backbone(z_t, t, replace(cond, duration=t - r))
        error = squared_error(u, target)
        total_error = error * z0[0].numel()
        scale = (total_error.detach() + self.epsilon) ** -self.power
        return FlowLoss(
            total=(self.matching.weighting(t) * scale * total_error).mean(),
            per_sample=error.detach(),
            t=t,
            parts={"unweighted": error.detach().mean()},
        )

    def times(self, generator: SampleGenerator) -> tuple[Time, Time]:
        """t and r <= t of each sample."""
        drawn = [self.matching.draw_time(generator.fork(name)) for name in ("time", "end")]
        t, r = torch.maximum(*drawn), torch.minimum(*drawn)
        return t, torch.where(generator.fork("equal").uniform() < self.equal, t, r)

    def _velocities(
        self,
        backbone: VelocityNetwork,
        z_t: Latent,
        t: Time,
        cond: Condition,
        v: Latent,
        null: Condition | None,
        kept: Bool[Tensor, "b"] | None,
    ) -> tuple[Latent, Latent]:
        """The velocity of the target and the tangent of the derivative. v: z1 - z0."""
        predicted = None
        if self.tangent == "prediction" or (self.guided and self.kappa):
            predicted = backbone(z_t, t, cond).float()
        guided = v
        if self.guided:
            assert null is not None, "an objective that guides its target is given the null condition"
            assert kept is not None
            guided = self.omega * v
            if predicted is not None and self.kappa:
                guided = guided + self.kappa * predicted
            if rest := 1 - self.omega - self.kappa:
                guided = guided + rest * backbone(z_t, t, null).float()
            here = kept & (t >= self.low) & (t <= self.high)
            guided = torch.where(here.view(-1, *[1] * (v.ndim - 1)), guided, v)
        return guided, predicted if self.tangent == "prediction" and predicted is not None else guided


def check_network(backbone: VelocityNetwork) -> None:
    """Raises ValueError for a network that has no mean velocities."""
    if not takes_durations(backbone):
        raise ValueError(
            "objective=meanflow trains mean velocities, and the model knows velocities at single times; use "
            "experiment=meanflow, or give model.durations=true"
        )
    if isinstance(backbone, SetsTarget):
        raise ValueError(
            "objective=meanflow trains the mean velocity, which other predictions do not state; use prediction=velocity"
        )


def total_derivative(
    backbone: VelocityNetwork,
    z_t: Latent,
    t: Time,
    cond: Condition,
    duration: Time,
    tangent: Latent,
) -> Float[Tensor, "b c h w"]:
    """du/dt = tangent d_z u + d_t u of u(z_t, r, t) with r = t - duration held, by forward-mode differentiation.

    No graph is kept, so that it works with activation checkpointing of every kind. Compiled blocks run eagerly,
    and fused attention is computed by its products, since neither has forward-mode derivatives.
    Raises ValueError for layers without them.
    """
    one = torch.ones_like(t)
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
        forward_ad.dual_level(),
    ):
        try:
            u = backbone(
                forward_ad.make_dual(z_t, tangent),
                forward_ad.make_dual(t, one),
                replace(cond, duration=forward_ad.make_dual(duration, one)),
            )
        except RuntimeError as error:
            if "forward AD" not in str(error) and "forward mode AD" not in str(error):
                raise
            raise ValueError(
                "objective=meanflow needs the forward derivative of every layer, and one has none; use fp8=false and "
                f"rfdit's own attention ({str(error).splitlines()[0]})"
            ) from error
        return forward_ad.unpack_dual(u.float()).tangent
