"""Couplings of data and noise."""

import warnings
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.randomness import START, SampleGenerator


@runtime_checkable
class Coupling(Protocol):
    """A pairing of the latents of a batch with noise."""

    def __call__(self, z0: Latent, cond: Condition, *, generator: SampleGenerator) -> Latent:
        """The noise in the order of its latents: row i is paired with row i of z0, under row i of cond.

        generator: that of the objective.
        """
        ...


class IndependentCoupling:
    """Each latent with noise that is drawn for it: z1 ~ N(0, I)."""

    def __call__(self, z0: Latent, cond: Condition, *, generator: SampleGenerator) -> Latent:
        return generator.fork("noise").normal(*z0.shape[1:])


class OptimalTransportCoupling:
    """The assignment within the batch with the least total squared distance (arXiv 2302.00482).

    min over permutations p of sum_i |z0_i - z1_p(i)|^2, where p(i) = j only if samples i and j have equal
    conditions. Without that restriction the noise that a sample gets would tell its condition, while at sampling
    noise and condition are independent (arXiv 2503.10636). Dropped conditions are equal to each other.

    Paths are straighter, but pairs depend on the other samples of the batch, so on the batch size per device, and
    the assignment is solved on the CPU, which waits for the device.
    Warns once if no two samples of a batch have equal conditions, since then all pairs stay as they are.
    """

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, z0: Latent, cond: Condition, *, generator: SampleGenerator) -> Latent:
        from scipy.optimize import linear_sum_assignment

        z1 = generator.fork("noise").normal(*z0.shape[1:])
        groups = equal_conditions(cond)
        if len(groups) > 1 and int(groups.max()) + 1 == len(groups) and not self._warned:
            self._warned = True
            warnings.warn(
                f"coupling=optimal_transport: the {len(groups)} samples of a batch have as many conditions, and noise "
                "goes only to samples of equal conditions, so it has no effect here; use coupling=independent, or "
                "train on few classes",
                stacklevel=2,
            )
        cost = torch.cdist(z0.flatten(1), z1.flatten(1)).square()
        cost = cost.masked_fill(groups[:, None] != groups[None], float("inf"))
        _, order = linear_sum_assignment(cost.numpy(force=True))
        return z1[torch.as_tensor(order, device=z1.device)]


class RecordedCoupling:
    """Each latent with the noise that a model made it from: reflow (arXiv 2209.03003, sec. 2.1).

        z0 = ODE(z1),    z1 = noise(seed, key)

    The noise is computed anew from the seed and the key that are recorded with the latent.
    Raises ValueError for latents that are recorded without them.
    """

    def __call__(self, z0: Latent, cond: Condition, *, generator: SampleGenerator) -> Latent:
        if generator.recorded is None:
            raise ValueError(
                "coupling=recorded needs latents together with the noise that they were made from, and the data "
                "has none; record both with rfdit sample output=latents out=FOLDER, and give data=latents "
                "data.shards=FOLDER"
            )
        return generator.recorded.fork(START).normal(*z0.shape[1:])


def equal_conditions(cond: Condition) -> Int[Tensor, "b"]:
    """A number for each sample, the same for those whose conditions are equal; numbers begin at 0."""
    parts = [part.detach().flatten(1) for part in (cond.pooled, cond.tokens, cond.mask) if part is not None]
    numbers = [torch.unique(part, dim=0, return_inverse=True)[1] for part in parts]
    return torch.unique(torch.stack(numbers, dim=1), dim=0, return_inverse=True)[1]
