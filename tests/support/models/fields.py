"""Velocity fields E[z1 - z0 | z_t] in closed form, in the place of a network."""

import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.flow import per_sample

MEAN, STD = 1.5, 0.3


def gaussian_velocity(z: Tensor, t: Tensor, mean: Tensor | float, std: float) -> Tensor:
    """The velocity for data N(mean, std^2): the flow maps noise z1 to mean + std z1."""
    variance = (1 - t) ** 2 * std**2 + t**2
    return -mean + (t - (1 - t) * std**2) / variance * (z - (1 - t) * mean)


def mixture_velocity(z: Tensor, t: Tensor) -> Tensor:
    """The velocity for an equal mixture of N(MEAN, STD^2) and N(-MEAN, STD^2): nonlinear in z."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    first = torch.sigmoid(2 * (1 - t) * MEAN * z / variance)
    here, there = (gaussian_velocity(z, t, mean, STD) for mean in (MEAN, -MEAN))
    return first * here + (1 - first) * there


class GaussianBackbone:
    """The velocity for data N(m, std^2), where m is the condition; notes the batch of each evaluation."""

    def __init__(self, std: float = STD) -> None:
        self.std = std
        self.batches: list[int] = []

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.batches.append(len(z_t))
        return gaussian_velocity(z_t, per_sample(t, z_t), per_sample(cond.pooled[:, 0], z_t), self.std)


def means(n: int, mean: float) -> Condition:
    """The condition of n samples that stands for data of this mean."""
    return Condition(pooled=torch.full((n, 1), mean))


START = torch.tensor([[[[0.4, -0.7, 0.2]]]], dtype=torch.float64)


def nonlinear(z: Tensor, t: Tensor) -> Tensor:
    """dz/dt = -2 t z^2, nonlinear in z and depending on t."""
    return -2 * t * z**2


def exact(z1: Tensor) -> Tensor:
    """z(0) of the field above: 1 / z(t) = 1 / z(1) + t^2 - 1."""
    return 1 / (1 / z1 - 1)


def gaussian_mean_velocity(z: Tensor, t: Tensor, r: Tensor, mean: Tensor | float, std: float) -> Tensor:
    """The mean velocity from r to t for data N(mean, std^2), (z_t - z_r) / (t - r); at r = t it is the velocity."""
    now, then = ((1 - time) ** 2 * std**2 + time**2 for time in (t, r))
    # (now - then) / (t - r), of which the division by zero at r = t is taken out
    slope = (std**2 + 1) * (t + r) - 2 * std**2
    return -mean + slope / (now.sqrt() + then.sqrt()) * (z - (1 - t) * mean) / now.sqrt()


class GaussianMeanBackbone:
    """The mean velocity for data N(m, std^2), where m is the condition."""

    durations = True

    def __init__(self, std: float = STD) -> None:
        self.std = std

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        duration = torch.zeros_like(t) if cond.duration is None else cond.duration
        t, r, mean = (per_sample(x, z_t) for x in (t, t - duration, cond.pooled[:, 0]))
        return gaussian_mean_velocity(z_t, t, r, mean, self.std)
