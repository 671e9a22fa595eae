"""Factors on the loss by time.

The minimiser of E[w(t) ||v_theta - v*||^2] is the same field for every w > 0; the weighting decides at
which times a network of limited capacity is most exact. Weighting by w(t) and drawing times from a
density proportional to w(t) have the same expected gradient up to a constant (arXiv 2403.03206, sec. 3.1).
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.batch import Time
from rfdit.limits import Positive


@runtime_checkable
class Weighting(Protocol):
    """A factor w(t) > 0 on each sample's loss."""

    def __call__(self, t: Time) -> Float[Tensor, "b"]:
        """w(t), float32, for times of shape (b,)."""
        ...


@runtime_checkable
class LearnedWeighting(Weighting, Protocol):
    """A weighting with parameters, which are trained on the weighted loss and a penalty on small weights."""

    def penalty(self, w: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """What is added to each sample's weighted loss. w: its weights."""
        ...


def check_not_learned(weighting: Weighting, reason: str) -> None:
    """Raises ValueError for a learned weighting, with the reason for which an objective does not take it."""
    if isinstance(weighting, LearnedWeighting):
        raise ValueError(f"weighting=learned {reason}; use weighting=uniform")


class MinSNRWeighting:
    """w = min((1 - t)^2, gamma t^2): min-SNR-gamma (arXiv 2303.09556), min(SNR, gamma) on the loss of the data.

    SNR = ((1 - t) / t)^2, and the loss of the data is t^2 times that of the velocity. Times near the data count less
    than in the loss of the noise, which alone has w = (1 - t)^2.
    gamma: the paper's 5.
    """

    def __init__(self, *, gamma: Positive = 5.0) -> None:
        if not 0 < gamma < math.inf:
            raise ValueError(f"weighting.gamma={gamma} must be positive")
        self.gamma = gamma

    def __call__(self, t: Time) -> Float[Tensor, "b"]:
        return torch.minimum((1 - t).square(), self.gamma * t.square())


class DataWeighting:
    """w = t^2: the loss is that of the data, |z0 - z0_hat|^2, as v - v_hat = -(z0 - z0_hat) / t."""

    def __call__(self, t: Time) -> Float[Tensor, "b"]:
        return t.square()


class NoiseWeighting:
    """w = (1 - t)^2: the loss is that of the noise, DDPM's |epsilon - epsilon_hat|^2."""

    def __call__(self, t: Time) -> Float[Tensor, "b"]:
        return (1 - t).square()


class EDMWeighting:
    """w = (t^2 + (1 - t)^2 s^2) / s^2 with s = sigma_data: the loss is EDM's, that of F (arXiv 2206.00364, sec. 5).

    EDM's times, ln(sigma) ~ N(-1.2, 1.2^2), are `time=edm`.
    """

    def __init__(self, *, sigma_data: Positive = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, t: Time) -> Float[Tensor, "b"]:
        return t.square() / self.sigma_data**2 + (1 - t).square()


class UniformWeighting:
    """w(t) = 1."""

    def __call__(self, t: Time) -> Float[Tensor, "b"]:
        return torch.ones_like(t)
