"""Which noise is paired with which latent."""

from typing import Protocol, runtime_checkable

import torch

from rfdit.batch import Latent


@runtime_checkable
class Coupling(Protocol):
    """Pairs a batch of latents with a batch of noise."""

    def __call__(self, z0: Latent, z1: Latent) -> Latent:
        """The noise, reordered: row i belongs to z0's row i."""
        ...


class IndependentCoupling:
    """Noise as drawn."""

    def __call__(self, z0: Latent, z1: Latent) -> Latent:
        return z1


class OptimalTransportCoupling:
    """The assignment within the batch with the least total squared distance (arXiv 2302.00482).

    Straighter paths, at a price: the pairs depend on the batch's other samples and so on the
    batch size per device, and the assignment is solved on the CPU, which waits for the device.
    """

    def __call__(self, z0: Latent, z1: Latent) -> Latent:
        from scipy.optimize import linear_sum_assignment

        cost = torch.cdist(z0.flatten(1), z1.flatten(1)).square()
        _, order = linear_sum_assignment(cost.numpy(force=True))
        return z1[torch.as_tensor(order, device=z1.device)]
