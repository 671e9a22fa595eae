"""Maximum mean discrepancies: KID and CMMD."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.eval.metrics.gathered import BLOCK, ComparedFeatures, mean_and_deviation, squared_distances
from rfdit.eval.reference.reference import Reference
from rfdit.limits import AtLeastTwo, Count


class KernelInceptionDistance(ComparedFeatures):
    """KID: the unbiased squared MMD with a cubic kernel, over random subsets (arXiv 1801.01401).

    sum_{i != j} (k(x_i, x_j) + k(y_i, y_j)) / (m (m - 1)) - 2 sum_{i, j} k(x_i, y_j) / m^2,
    k(x, y) = (x . y / d + 1)^3, for m generated images x and m reference images y. Mean and standard
    deviation over the subsets, as torchmetrics computes them, in float64.

    feature: output of the network. subsets: their number. subset_size: m.
    """

    higher_is_better = False
    names = ("kid", "kid_std")

    def __init__(
        self,
        *,
        feature: str = "pool",
        subsets: Count = 100,
        subset_size: AtLeastTwo = 1000,
    ) -> None:
        super().__init__(feature=feature, subsets=subsets, subset_size=subset_size)
        self.subsets, self.subset_size, self.min_images = subsets, subset_size, subset_size

    def compare_with(self, reference: Reference) -> None:
        """See `ReferenceMetric`; raises ValueError if the reference has fewer features than a subset."""
        super().compare_with(reference)
        self._check_count(reference.features[self.reads[0]], "reference")

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Raises ValueError for fewer images than in a subset."""
        from torchmetrics.image.kid import KernelInceptionDistance as OverSubsets

        generated, reference = self.sets()
        self._check_count(generated, "generated")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that features are kept
            kid = OverSubsets(
                nn.Identity(), subsets=self.subsets, subset_size=self.subset_size, sync_on_compute=False
            )
        kid.to(generated.device)
        kid.update(reference, real=True)
        kid.update(generated, real=False)
        return mean_and_deviation(kid, "kid")

    def _check_count(self, features: Tensor, which: str) -> None:
        if len(features) < self.subset_size:
            raise ValueError(
                f"kid.subset_size={self.subset_size} is more than the {len(features)} {which} images; give fewer"
            )


class CLIPMaximumMeanDiscrepancy(ComparedFeatures):
    """CMMD: 1000 times the squared MMD of CLIP's unit vectors with a Gaussian kernel (arXiv 2401.09603).

    mean_{i, j} (k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j)), k(x, y) = exp(-|x - y|^2 / (2 sigma^2)),
    sigma = 10. It is the biased estimate, as in the paper's code: i = j counts as well. Published
    numbers are of ViT-L/14 at 336 pixels, to which the paper's code resizes images bicubically.
    torchmetrics does not have it.

    feature: output of the network.
    """

    higher_is_better = False
    names = ("cmmd",)
    min_images = 1
    sigma, scale = 10.0, 1000.0

    def __init__(self, *, feature: str = "image") -> None:
        super().__init__(feature=feature, sigma=self.sigma, scale=self.scale)

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Compares all pairs of images, a block at a time."""
        generated, reference = self.sets()
        mmd = self._mean(reference, reference) + self._mean(generated, generated)
        return {"cmmd": self.scale * (mmd - 2 * self._mean(reference, generated))}

    def _mean(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
        """The mean of k(x_i, y_j)."""
        blocks = (squared_distances(rows, y).mul_(-0.5 / self.sigma**2).exp_() for rows in x.split(BLOCK))
        return torch.stack([k.sum() for k in blocks]).sum() / (len(x) * len(y))
