"""The Frechet distance of two sets' features: FID, sFID, FD_DINOv2."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from rfdit.eval.metrics.moments import FeatureMoments, sums
from rfdit.eval.networks.feature_network import check_finite
from rfdit.eval.reference.reference import Reference


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> Float[Tensor, ""]:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), float64 (Dowson and Landau 1982, eq. 16).

    A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2), so that no matrix root has to be iterated.
    Directions in which A has no variance are left out, since their rounding errors would enter by their
    square root; there are many if A comes from fewer images than dimensions. A set's distance to itself is
    then about 1e-8 of the trace.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    varies = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root = vectors[:, varies] * values[varies].sqrt()
    product = torch.linalg.eigvalsh(root.T @ b.covariance @ root).clamp(min=0)
    traces = a.covariance.trace() + b.covariance.trace() - 2 * product.sqrt().sum()
    return (a.mean - b.mean).square().sum() + traces


class FrechetDistance(Metric):
    """Frechet distance of the Gaussians fitted to generated and reference features; see `frechet_distance`.

    With Inception's `pool` it is FID (arXiv 1706.08500), with Inception's `spatial` sFID (arXiv
    2103.03841); outputs of other networks give FD_DINOv2 and the like. torchmetrics' FID takes 45 s on 2
    CPU cores for the eigenvalues of a matrix that is not symmetric, and does not accept a reference that is
    only moments. The state is count, sum and outer products in float64: 32 MiB for 2048 features, however
    many images.

    feature: output of the network. name: name of the value.
    """

    full_state_update = False
    higher_is_better = False
    min_images = 2
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, *, feature: str = "pool", name: str = "fid") -> None:
        super().__init__()
        self.reads, self.names, self.settings = (feature,), (name,), dict[str, int | float | str]()
        self._reference: FeatureMoments | None = None

    def compare_with(self, reference: Reference) -> None:
        """See `ReferenceMetric`."""
        self._reference = reference.moments_of(self.reads[0], needed_by=self.names[0])
        width = len(self._reference.mean)
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """See `FeatureMetric`."""
        assert self._reference is not None, "compare_with comes first"
        check_finite(features, self.reads[0])
        for state, added in zip((self.count, self.total, self.outer), sums(features)):
            state += added

    def compute(self) -> dict[str, Tensor]:
        """Warns if a covariance comes from no more images than features."""
        assert self._reference is not None, "compare_with comes first"
        generated, reference = FeatureMoments.from_sums(self.count, self.total, self.outer), self._reference
        width = len(generated.mean)
        for count, which in ((generated.count, "generated"), (reference.count, "reference")):
            if count is not None and count <= width:
                warnings.warn(
                    f"{self.names[0]} comes from {count} {which} images and {width} features, so the covariance is "
                    f"singular and the number depends on how many images there are; take more than {width}",
                    stacklevel=2,
                )
        mean, covariance = (x.to(self.total.device) for x in (reference.mean, reference.covariance))
        return {self.names[0]: frechet_distance(FeatureMoments(reference.count, mean, covariance), generated)}
