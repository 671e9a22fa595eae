"""Mean and covariance of features, accumulated a batch at a time in float64."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class FeatureMoments:
    """Mean and covariance of a set of features, float64; all that a Frechet distance needs.

    count: number of images; None where a file from elsewhere does not say.
    covariance: the unbiased one, over count - 1.
    """

    count: int | None
    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "FeatureMoments":
        """Moments of a complete set of features; raises ValueError for fewer than two."""
        return cls.from_sums(*sums(features))

    @classmethod
    def from_sums(
        cls, count: Int[Tensor, ""], total: Float[Tensor, "d"], outer: Float[Tensor, "d d"]
    ) -> "FeatureMoments":
        """Moments from what `sums` returns, added up over batches; raises ValueError for fewer than two images.

        covariance = (outer - n mean mean^T) / (n - 1). In float64 nothing needs to be shifted: with a
        mean m and a deviation s, it loses about (m / s)^2 of 16 digits, for the networks here less than 3.
        """
        n = int(count)
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 images, and there are {n}")
        mean = total / n
        return cls(n, mean, (outer - n * torch.outer(mean, mean)) / (n - 1))


def sums(
    features: Float[Tensor, "n d"],
) -> tuple[Int[Tensor, ""], Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """n, sum_i x_i and sum_i x_i x_i^T in float64."""
    x = features.double()
    return torch.tensor(len(x), device=x.device), x.sum(0), x.T @ x
