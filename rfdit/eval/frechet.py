"""The Frechet distance of two sets' features, as of FID and sFID."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from rfdit.eval.features import check_finite
from rfdit.eval.moments import Moments, sums
from rfdit.eval.reference_set import Reference


def frechet_distance(a: Moments, b: Moments) -> Float[Tensor, ""]:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), float64 (Dowson and Landau 1982, eq. 16).

    A B has the eigenvalues of A^(1/2) B A^(1/2), which is symmetric, so that no matrix root is iterated
    for. A's directions without variance, of which there are many if it is of fewer images than
    dimensions, are left out: their rounding errors would enter by their square root. What is left of a
    set's distance to itself is about 1e-8 of the trace.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root = vectors[:, kept] * values[kept].sqrt()
    product = torch.linalg.eigvalsh(root.T @ b.covariance @ root).clamp(min=0)
    traces = a.covariance.trace() + b.covariance.trace() - 2 * product.sqrt().sum()
    return (a.mean - b.mean).square().sum() + traces


class FrechetDistance(Metric):
    """Frechet distance to the reference's Gaussian; with Inception's `pool`, FID (arXiv 1706.08500).

    With Inception's `spatial` it is sFID (arXiv 2103.03841), with another network that network's.
    torchmetrics has FID, but takes 45 s on 2 CPU cores for the eigenvalues of a matrix that is not symmetric, and
    knows no reference that is only moments.
    State: count, sum and outer products in float64, 32 MiB for 2048 features however many images.

    feature: the output of the network. name: of the value.
    """

    full_state_update = False
    higher_is_better = False
    least = 2
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, *, feature: str = "pool", name: str = "fid") -> None:
        super().__init__()
        self.feature, self.names, self.settings = feature, (name,), dict[str, int | float | str]()
        self._reference: Moments | None = None

    def compare_with(self, reference: Reference) -> None:
        """See `ReferenceMetric`."""
        self._reference = reference.moments_of(self.feature, needed_by=self.names[0])
        width = len(self._reference.mean)
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """See `FeatureMetric`."""
        assert self._reference is not None, "compare_with comes first"
        check_finite(features, self.feature)
        for state, added in zip((self.count, self.total, self.outer), sums(features)):
            state += added

    def compute(self) -> dict[str, Tensor]:
        """Warns if a covariance is of fewer images than features."""
        assert self._reference is not None, "compare_with comes first"
        generated = Moments.from_sums(self.count, self.total, self.outer)
        width = len(generated.mean)
        for count, whose in ((generated.count, "generated"), (self._reference.count, "reference")):
            if count is not None and count <= width:
                warnings.warn(
                    f"{self.names[0]} is of {count} {whose} images and {width} features, so the covariance is "
                    f"singular and the number depends on how many images there are; take more than {width}",
                    stacklevel=2,
                )
        reference = self._reference
        mean, covariance = (x.to(self.total.device) for x in (reference.mean, reference.covariance))
        return {self.names[0]: frechet_distance(Moments(reference.count, mean, covariance), generated)}
