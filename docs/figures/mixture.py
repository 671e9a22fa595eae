"""A data set whose velocity field is known exactly: a few Gaussians in the plane, in classes.

Under component k, N(mu_k, s^2), the time-t point is N((1 - t) mu_k, V) with V = (1 - t)^2 s^2 + t^2, and

    E[z0 | z_t, k] = mu_k + (1 - t) s^2 / V (z_t - (1 - t) mu_k)
    E[z1 | z_t, k] = t / V (z_t - (1 - t) mu_k)

The velocity is E[z1 - z0 | z_t], these means weighted by the probabilities of the components. It takes the place of
a trained network, so that figures show the method and not how long somebody has trained.
"""

import math

import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.flow import per_sample


class Mixture:
    """An exact velocity network over latents (b, 2, 1, 1); its condition is a class, or -1 for all classes."""

    def __init__(self, *, means: Tensor, classes: Tensor, std: float) -> None:
        self.means, self.classes, self.std = means, classes, std

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        z, t = z_t.flatten(1)[:, None], per_sample(t, z_t).flatten(1)[..., None]  # (b, 1, 2), (b, 1, 1)
        variance = (1 - t) ** 2 * self.std**2 + t**2
        away = z - (1 - t) * self.means  # (b, k, 2)
        logits = -away.square().sum(2) / (2 * variance[..., 0])
        wanted = cond.pooled[:, :1]
        logits = logits.masked_fill((wanted >= 0) & (wanted != self.classes), -math.inf)
        z0 = self.means + (1 - t) * self.std**2 / variance * away
        z1 = t / variance * away
        return (logits.softmax(1)[..., None] * (z1 - z0)).sum(1).view_as(z_t)

    def draw(self, n: int, seed: int) -> Tensor:
        """Samples of the data, (n, 2, 1, 1)."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self.means), (n,), generator=generator)
        return (self.means[which] + self.std * torch.randn(n, 2, generator=generator))[..., None, None]


def of_class(number: int, n: int) -> Condition:
    """The condition of n samples of one class; -1 is the null condition."""
    return Condition(pooled=torch.full((n, 1), float(number)))


def noise(n: int, seed: int) -> Tensor:
    """Standard normal latents, (n, 2, 1, 1)."""
    return torch.randn(n, 2, 1, 1, generator=torch.Generator().manual_seed(seed))


def ring(components: int = 8, radius: float = 2.0, std: float = 0.15) -> Mixture:
    """Gaussians on a circle, every other one of class 0 and the rest of class 1."""
    angles = 2 * math.pi * torch.arange(components) / components
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    return Mixture(means=means, classes=torch.arange(components) % 2, std=std)


def clusters(std: float = 0.35) -> Mixture:
    """Two overlapping classes of three Gaussians each."""
    means = torch.tensor([[1.2, 0.3], [1.9, -0.9], [0.4, -0.6], [-1.2, -0.3], [-1.9, 0.9], [-0.4, 0.6]])
    return Mixture(means=means, classes=torch.tensor([0, 0, 0, 1, 1, 1]), std=std)
