"""Mean and covariance of features, gathered a batch at a time in float64."""

from dataclasses import dataclass

from jaxtyping import Float
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
