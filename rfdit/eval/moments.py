"""Mean and covariance of features, gathered a batch at a time in float64."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """What a Frechet distance knows of a set; float64.

    count: of images; None where a file from elsewhere does not say.
    covariance: the unbiased one, over count - 1.
    """

    count: int | None
    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "Moments":
        """Of features that are all there; raises ValueError for fewer than two."""
        return cls.from_sums(*sums(features))

    @classmethod
    def from_sums(
        cls, count: Int[Tensor, ""], total: Float[Tensor, "d"], outer: Float[Tensor, "d d"]
    ) -> "Moments":
        """From what `sums` gives, added up over batches and ranks; raises ValueError for fewer than two.

        In float64 nothing needs to be shifted: with a mean m and a deviation s, the covariance loses
        about (m / s)^2 of 16 digits, and for the networks here that is less than 3 of them.
        """
        n = int(count)
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 images, and there are {n}")
        mean = total / n
        return cls(n, mean, (outer - n * torch.outer(mean, mean)) / (n - 1))


def sums(
    features: Float[Tensor, "n d"],
) -> tuple[Int[Tensor, ""], Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """How many, their sum, and the sum of their outer products with themselves, in float64."""
    x = features.double()
    return torch.tensor(len(x), device=x.device), x.sum(0), x.T @ x
