"""Ancestral sampling of DDPM (arXiv 2006.11239) with the learned variance of arXiv 2102.09672.

With abar at t, abar' at t_next, alpha = abar / abar' and beta = 1 - alpha, which for any subset of a schedule's
timesteps are those of the shorter process (arXiv 2102.09672, sec. 4), a step is

    x0   = (x - sqrt(1 - abar) epsilon) / sqrt(abar)
    mean = sqrt(abar') beta / (1 - abar) x0 + sqrt(alpha) (1 - abar') / (1 - abar) x
    x'   = mean + sqrt(variance) noise

in the coordinates x = z / sqrt((1 - t)^2 + t^2) of a variance-preserving diffusion. The variance lies between
beta and the posterior's, beta (1 - abar') / (1 - abar): `large`, `small`, or where the network says, between
their logarithms.
"""

import copy
import math
from typing import Literal

import torch
from torch import Tensor

from rfdit.batch import Condition, Latent, Time
from rfdit.model.vp_schedule import VPSchedule, norm
from rfdit.protocols import HasPrediction, LearnsVariance, VelocityNetwork
from rfdit.sampler.solvers import VelocityField

Variance = Literal["learned", "small", "large"]


class VarianceListener:
    """A velocity network that keeps what the network says of the variance in the first of its evaluations.

    Every guidance evaluates the condition to follow first, and in a batch of both it comes first: as in
    DiT's code, variances are not guided.
    """

    def __init__(self, network: HasPrediction) -> None:
        self.network = network
        self.heard: Tensor | None = None

    def __call__(self, z_t: Latent, t: Time, cond: Condition) -> Latent:
        v, variance = self.network(z_t, t, cond, with_variance=True)
        if self.heard is None:
            self.heard = variance
        return v


class DDPM:
    """Ancestral steps between any two times; over all timesteps of a schedule they are DDPM's.

    DiT's published numbers are of 250 of 1,000 timesteps (`RespacedGrid`) with the learned variance. The
    time 1, which no timestep reaches, stands for the schedule's last.

    schedule: the network's. variance: learned, which needs a network of `prediction=noise` with
        learned_variance; small and large need nothing, and work with every velocity network.
    """

    def __init__(self, *, schedule: VPSchedule, variance: Variance = "learned") -> None:
        self.schedule, self.variance = schedule, variance
        self._listener: VarianceListener | None = None

    def reading(self, network: VelocityNetwork) -> tuple["DDPM", VelocityNetwork]:
        """The solver for one network, and the network to guide in place of it.

        Raises ValueError for one without a learned variance, or of another schedule.
        """
        if self.variance != "learned":
            return self, network
        prediction = network.prediction if isinstance(network, HasPrediction) else None
        if not isinstance(prediction, LearnsVariance) or not prediction.learned_variance:
            raise ValueError(
                "sampler.solver.variance=learned needs a model of prediction=noise with learned_variance=true, such as "
                "a converted DiT; use sampler.solver.variance=small, or sampler=euler"
            )
        if prediction.schedule != self.schedule:
            raise ValueError(
                f"sampler.solver.schedule={self.schedule} is not that of the model, {prediction.schedule}; give the "
                "model's"
            )
        assert isinstance(network, HasPrediction)
        other = copy.copy(self)
        other._listener = VarianceListener(network)
        return other, other._listener

    def alone(self) -> "DDPM":
        """The same steps for a network of which only velocities are known, to count them."""
        return DDPM(schedule=self.schedule, variance="small")

    def noisy_step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor, noise: Latent) -> Latent:
        said, v = self._evaluate(field, z, t)
        # One number each, in float64; a time beyond the last timestep stands for it.
        t, t_next = t.double(), t_next.double()
        level = t.clamp(max=self.schedule.end)
        epsilon = v * float(1 - level) + z * float(norm(level) / norm(t))
        abar, abar_next = self.schedule.share_of_data(t), self.schedule.share_of_data(t_next)
        alpha = abar / abar_next
        beta, small = 1 - alpha, (1 - alpha) * (1 - abar_next) / (1 - abar)
        x = z / float(norm(t))
        x0 = (x - math.sqrt(1 - abar) * epsilon) / math.sqrt(abar)
        mean = (
            math.sqrt(abar_next) * beta / (1 - abar) * x0
            + math.sqrt(alpha) * (1 - abar_next) / (1 - abar) * x
        )
        if abar_next == 1:  # to data: nothing would remove the noise again
            return mean
        if said is not None:  # -1 is small and 1 is large
            share = (said + 1) / 2
            std = torch.exp((share * math.log(beta) + (1 - share) * math.log(small)) / 2)
            return (mean + std * noise) * float(norm(t_next))
        variance = beta if self.variance == "large" else small
        return (mean + math.sqrt(variance) * noise) * float(norm(t_next))

    def _evaluate(self, field: VelocityField, z: Latent, t: Tensor) -> tuple[Latent | None, Latent]:
        """What the network says of the variance, if it is listened to, and the guided velocity."""
        if self._listener is None:
            return None, field(z, t)
        self._listener.heard = None
        v = field(z, t)
        if self._listener.heard is None:
            raise ValueError(
                f"sampler.solver.variance=learned needs an evaluation of the network in every step, and guidance has "
                f"made none at t={float(t):.3f}; use guidance.zero_init=0"
            )
        return self._listener.heard[: len(z)].float(), v
