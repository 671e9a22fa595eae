"""DDPM's objective with a learned variance, which is DiT's own (arXiv 2102.09672, sec. 3; 2212.09748, sec. 3.1)."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.special import erfc

from rfdit import flow
from rfdit.batch import Condition, Latent, Time
from rfdit.device import constant
from rfdit.flow import per_sample
from rfdit.limits import NotNegative
from rfdit.objective.coupling import Coupling
from rfdit.objective.times import DrawsTimesteps, TimeSampler
from rfdit.objective.velocity import VelocityMatching
from rfdit.objective.weighting import Weighting
from rfdit.protocols import FlowLoss, HasPrediction, LearnsVariance, VelocityNetwork
from rfdit.randomness import SampleGenerator

LEVEL = 2 / 255  # of the data's 256 levels from -1 to 1, the width of one
LEAST = 1e-12  # probability of a level, whose logarithm is taken


class NoiseAndVarianceMatching:
    """E[w(t) ||v_theta - v||^2] + vb_weight E[L_vb], at the timesteps of a variance-preserving schedule.

    With `weighting=noise` the first term is DDPM's L_simple = ||epsilon_theta - epsilon||^2. The second is the bound
    on the likelihood in bits per dimension (arXiv 2006.11239, eq. 5), of one timestep k, counted from 0:

        L_vb = KL(q(x_{k-1} | x_k, x_0) || p_theta(x_{k-1} | x_k))    for k > 0
        L_vb = -log p_theta(x_0 | x_k)                                for k = 0, x_0 one of 256 levels in [-1, 1]

    p_theta is normal, with the variance exp(s log beta + (1 - s) log beta~), s = (output + 1) / 2, between the
    process's beta and the posterior's beta~ (arXiv 2102.09672, eq. 15). Its mean has no gradient here, so that the
    bound trains the variance alone. In terms of the velocity, with d = log(beta / beta~) and abar' that of k - 1,

        KL = (s d - 1 + (1 + g |v_theta - v|^2) exp(-s d)) / 2
        g  = abar' beta t^2 / ((1 - abar) (1 - abar'))

    time: `TimestepTime`; its schedule is the network's. coupling, weighting: those of `VelocityMatching`.
    vb_weight: 1 is DiT's, and 0.001 of the sum over the paper's 1,000 timesteps.
    Raises ValueError for other times, and for a network without a learned variance or of another schedule.
    """

    def __init__(
        self, *, time: TimeSampler, coupling: Coupling, weighting: Weighting, vb_weight: NotNegative = 1.0
    ) -> None:
        if not isinstance(time, DrawsTimesteps):
            raise ValueError(
                f"objective=ddpm needs the timesteps of a schedule, and time._target_={type(time).__name__} draws "
                "other times; use time=ddpm"
            )
        self.matching = VelocityMatching(time=time, coupling=coupling, weighting=weighting)
        self.schedule, self.vb_weight = time.schedule, vb_weight
        # d and g of each timestep; those of the first, which has no reverse step to another, are not used.
        spans, gains = [0.0], [0.0]
        for (before, abar), t in zip(
            pairwise(self.schedule.alpha_bars), self.schedule.times[1:], strict=True
        ):
            spans.append(math.log((1 - abar) / (1 - before)))
            gains.append((before - abar) * t**2 / ((1 - abar) * (1 - before)))
        self._spans, self._gains = tuple(spans), tuple(gains)
        # Between these is the log variance of the first: its posterior has none, and takes that of the second.
        first, second = self.schedule.alpha_bars[:2]
        self._large = math.log(1 - first)
        self._small = math.log((1 - second / first) * (1 - first) / (1 - second))

    @property
    def layers(self) -> nn.Module | None:
        """As of `VelocityMatching`."""
        return self.matching.layers

    def __call__(
        self, backbone: VelocityNetwork, z0: Latent, cond: Condition, *, generator: SampleGenerator
    ) -> FlowLoss:
        network = self._with_variance(backbone)
        seen: list[tuple[Latent, Latent]] = []

        def velocity(z_t: Latent, t: Time, cond: Condition) -> Latent:
            v, output = network(z_t, t, cond, with_variance=True)
            seen.append((z_t, output))
            return v

        at = self.matching.evaluate(velocity, z0, cond, generator=generator)
        simple = self.matching.loss(at.error(at.target), at.t)
        (z_t, output), v = seen[0], at.v.detach().float()
        share = (output.float() + 1) / 2
        k = self.schedule.timestep(at.t)
        bound = self.divergence(share, (v - at.target).square(), k)
        likelihood = self.likelihood(share, z0, flow.data_from_velocity(z_t, v, at.t))
        vb = torch.where(per_sample(k, z0) == 0, -likelihood, bound).mean() / math.log(2)
        return FlowLoss(
            total=simple.total + self.vb_weight * vb,
            per_sample=simple.per_sample,
            t=at.t,
            parts={"simple": simple.total, "vb": vb},
        )

    def divergence(self, share: Latent, missed: Latent, k: Time) -> Latent:
        """The KL of each dimension at timesteps k above 0, in nats.

        share: s. missed: the squared error of the velocity.
        """
        gain, span = (
            per_sample(constant(each, like=share)[k.long()], share) for each in (self._gains, self._spans)
        )
        return (share * span - 1 + (1 + gain * missed) * torch.exp(-share * span)) / 2

    def likelihood(self, share: Latent, z0: Latent, mean: Latent) -> Latent:
        """log p_theta(x_0 | x) of each dimension at the first timestep, in nats. mean: the data that it estimates."""
        std = torch.exp((share * self._large + (1 - share) * self._small) / 2)
        return log_probability_of_level(z0, mean, std)

    def _with_variance(self, backbone: VelocityNetwork) -> HasPrediction:
        prediction = backbone.prediction if isinstance(backbone, HasPrediction) else None
        if not isinstance(prediction, LearnsVariance) or not prediction.learned_variance:
            raise ValueError(
                "objective=ddpm trains a variance beside the noise; use experiment=ddpm_baseline, or prediction=noise "
                "with prediction.learned_variance=true and a model.out_channels of twice the latents' channels"
            )
        if prediction.schedule != self.schedule:
            raise ValueError(
                f"time.schedule={self.schedule} is not that of the model, {prediction.schedule}; give it the settings "
                "of prediction.schedule"
            )
        assert isinstance(backbone, HasPrediction)
        return backbone


def log_probability_of_level(
    x: Float[Tensor, "*shape"], mean: Float[Tensor, "*shape"], std: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """log of the integral of N(mean, std^2) over the level of x, one of 256 from -1 to 1 (arXiv 2006.11239, eq. 13).

    The first and the last level reach to infinity. Data between levels, as latents are, counts as the middle of one.
    """
    low = torch.where(x < -0.999, -torch.inf, (x - mean - LEVEL / 2) / std)
    high = torch.where(x > 0.999, torch.inf, (x - mean + LEVEL / 2) / std)
    # Small differences are exact in the lower tail alone, and there as those of erfc.
    upper = low > 0
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    return ((erfc(-high / math.sqrt(2)) - erfc(-low / math.sqrt(2))) / 2).clamp(min=LEAST).log()
