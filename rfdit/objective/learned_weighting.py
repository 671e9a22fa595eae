"""A weighting that is learned: each noise level by its own loss (EDM2, arXiv 2312.02696)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.batch import Time
from rfdit.limits import Count

PERIOD = 32.0  # of ln(sigma): the times of float32 lie within 16 of 0
NEAREST = 1e-7  # of a time to 0 and 1


class UncertaintyWeighting(nn.Module):
    """w(t) = exp(-u(t)) with a learned u, trained on w(t) l + u(t), where l is a sample's loss.

    This is EDM2's continuous form of the uncertainty weighting of several tasks (Kendall et al., arXiv 1705.07115). Its
    minimum is u(t) = ln E[l | t], so that every noise level counts the same, whatever its loss, and in the gradient of
    the network each is divided by its own mean. With x = ln(sigma) = logit(t),

        u = a_0 + sum_j (a_j cos(2 pi j x / 32) + b_j sin(2 pi j x / 32))

    All begins at w = 1. u is trained with the network, by its optimiser; at a learning rate of 1e-4 it follows in
    some thousand steps. The model that is sampled does not need it.

    harmonics: the number of j; the finest structure in ln(sigma) is about 32 / harmonics wide.
    """

    def __init__(self, *, harmonics: Count = 16) -> None:
        super().__init__()
        self.harmonics = harmonics
        self.coefficients = nn.Parameter(torch.zeros(1 + 2 * harmonics))

    def forward(self, t: Time) -> Float[Tensor, "b"]:
        angle = 2 * math.pi / PERIOD * torch.logit(t, eps=NEAREST)
        angles = angle[:, None] * torch.arange(1, self.harmonics + 1, device=t.device)
        series = torch.cat([torch.ones_like(angle)[:, None], angles.cos(), angles.sin()], dim=1)
        # A sum, since autocast would round a matrix product to bf16.
        return torch.exp(-(self.coefficients * series).sum(1))

    def penalty(self, w: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """u, without which the least loss would be that of w = 0."""
        return -w.log()
