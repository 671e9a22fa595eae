"""The noise levels of DDPM (arXiv 2006.11239) as times of the straight path.

A variance-preserving diffusion mixes x = sqrt(abar) z0 + sqrt(1 - abar) z1. Divided by the sum of the two
factors it lies on the straight path:

    t = sqrt(1 - abar) / (sqrt(abar) + sqrt(1 - abar))        z = x / (sqrt(abar) + sqrt(1 - abar))
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.device import constant
from rfdit.limits import AtLeastTwo, OpenFraction

SNAP = 1e-2  # of a step: a time that float32 has rounded belongs to its timestep


def norm(t: Tensor) -> Tensor:
    """sqrt((1 - t)^2 + t^2) = 1 / (sqrt(abar) + sqrt(1 - abar)): z = norm(t) x."""
    return ((1 - t).square() + t.square()).sqrt()


def alpha_bar(t: Tensor) -> Tensor:
    """abar = (1 - t)^2 / ((1 - t)^2 + t^2), the share of data in the variance at time t."""
    return (1 - t).square() / ((1 - t).square() + t.square())


class VPSchedule:
    """Timesteps 0 to timesteps - 1 with beta from beta_start to beta_end in equal steps; DDPM's and DiT's by default.

    abar of timestep k is the product of 1 - beta up to k.
    start, end: the times of the first and the last timestep, outside of which no network was trained.
    """

    def __init__(
        self,
        *,
        timesteps: AtLeastTwo = 1000,
        beta_start: OpenFraction = 1e-4,
        beta_end: OpenFraction = 2e-2,
    ) -> None:
        if not 0 < beta_start < beta_end < 1:
            raise ValueError(
                f"schedule.beta_start={beta_start}, beta_end={beta_end} must be above 0, below 1, and in this order"
            )
        self.timesteps, self.beta_start, self.beta_end = timesteps, beta_start, beta_end
        # Lists, not tensors: networks are copied to the meta device and to fake tensors.
        alphas = (
            1 - torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64, device="cpu")
        ).cumprod(0)
        ratio = ((1 - alphas) / alphas).sqrt()  # sigma / alpha = t / (1 - t)
        self._alphas: list[float] = alphas.tolist()
        self._log_ratios: tuple[float, ...] = tuple(ratio.log().tolist())
        self._times: list[float] = (ratio / (1 + ratio)).tolist()

    @property
    def start(self) -> float:
        return self._times[0]

    @property
    def end(self) -> float:
        return self._times[-1]

    @property
    def times(self) -> Sequence[float]:
        """The time of each timestep, ascending."""
        return self._times

    @property
    def alpha_bars(self) -> Sequence[float]:
        """abar of each timestep, descending."""
        return self._alphas

    def __repr__(self) -> str:
        return f"{self.timesteps} betas from {self.beta_start} to {self.beta_end}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VPSchedule) and self._alphas == other._alphas

    __hash__ = None  # type: ignore[assignment]

    def timestep(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """The timestep of times, a real number; beyond the ends of the schedule it is the first or the last.

        Between timesteps it is linear in log(t / (1 - t)), half the log of noise over data.
        """
        levels = constant(self._log_ratios, like=t)
        level = torch.logit(t.clamp(self.start, self.end)).clamp(levels[0], levels[-1])
        above = torch.searchsorted(levels, level).clamp(1, self.timesteps - 1)
        low, high = levels[above - 1], levels[above]
        k = above - 1 + (level - low) / (high - low)
        return torch.where((k - k.round()).abs() < SNAP, k.round(), k)

    def share_of_data(self, t: Float[Tensor, ""]) -> float:
        """abar at one time: as the schedule has it at its timesteps, and at the last of them beyond it."""
        if t < self.start * (1 - 1e-6):
            return float(alpha_bar(t.double()))
        k = float(self.timestep(t))
        return self._alphas[int(k)] if k.is_integer() else float(alpha_bar(t.double()))
