"""Maximum mean discrepancies: KID and CMMD."""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.eval.feature_list import BLOCK, KeptFeatures, squared_distances
from rfdit.eval.reference_set import Reference

SEED = 0  # of the subsets


class KernelInceptionDistance(KeptFeatures):
    """KID (arXiv 1801.01401): the unbiased squared MMD with the kernel (x.y / d + 1)^3, over random subsets.

    The number is torchmetrics' own, computed in float64. Around it: the features of all ranks come in
    one order and the subsets from a seed, so that it is the same on any number of ranks and torch's RNG
    stays as it was, and reference features are not gathered from every rank.

    feature: the output of the network. subsets: how many. subset_size: images of each set in each.
    """

    higher_is_better = False
    names = ("kid", "kid_std")

    def __init__(self, *, feature: str = "pool", subsets: int = 100, subset_size: int = 1000) -> None:
        super().__init__(feature=feature)
        if subsets < 1 or subset_size < 2:
            raise ValueError(
                f"subsets={subsets}, subset_size={subset_size}: KID needs at least 1 subset of 2"
            )
        self.subsets, self.subset_size = subsets, subset_size
        self.settings = {"subsets": subsets, "subset_size": subset_size}
        self.least = subset_size

    def compare_with(self, reference: Reference) -> None:
        """See `ReferenceMetric`; raises ValueError if the reference has fewer features than a subset."""
        super().compare_with(reference)
        assert self._reference is not None
        self._check_count(len(self._reference), "reference")

    def compute(self) -> dict[str, Tensor]:
        """Mean and standard deviation over the subsets; raises ValueError for fewer images than in one."""
        from torchmetrics.image.kid import KernelInceptionDistance as OverSubsets

        fake, real = self.sets()
        self._check_count(len(fake), "generated")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that features are kept
            kid = OverSubsets(
                nn.Identity(), subsets=self.subsets, subset_size=self.subset_size, sync_on_compute=False
            )
        kid.to(fake.device)
        kid.update(real, real=True)
        kid.update(fake, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            mean, deviation = kid.compute()
        return {"kid": mean, "kid_std": deviation}

    def _check_count(self, count: int, whose: str) -> None:
        if count < self.subset_size:
            raise ValueError(
                f"kid.subset_size={self.subset_size} is more than the {count} {whose} images; give fewer"
            )


class CLIPMaximumMeanDiscrepancy(KeptFeatures):
    """CMMD (arXiv 2401.09603): squared MMD with a Gaussian kernel of sigma 10 on CLIP's unit vectors, times 1000.

    The biased estimate, as in the paper's code: each image is compared with itself as well.
    torchmetrics has none. Published numbers are of ViT-L/14 at 336 px; the paper's code gives it images
    resized bicubically to that.

    feature: the output of the network.
    """

    higher_is_better = False
    names = ("cmmd",)
    least = 1
    sigma, scale = 10.0, 1000.0

    def __init__(self, *, feature: str = "image") -> None:
        super().__init__(feature=feature)
        self.settings = {"sigma": self.sigma, "scale": self.scale}

    def compute(self) -> dict[str, Tensor]:
        """Over all pairs of images, a block at a time."""
        fake, real = self.sets()

        def kernel(x: Tensor, y: Tensor) -> Tensor:
            return squared_distances(x, y).mul_(-0.5 / self.sigma**2).exp_()

        mmd = mean_over_pairs(kernel, real, real) + mean_over_pairs(kernel, fake, fake)
        return {"cmmd": self.scale * (mmd - 2 * mean_over_pairs(kernel, real, fake))}


def mean_over_pairs(
    kernel: Callable[[Tensor, Tensor], Tensor], x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]
) -> Float[Tensor, ""]:
    """The kernel's mean over all pairs, a block of rows at a time."""
    total = torch.stack([kernel(rows, y).sum() for rows in x.split(BLOCK)]).sum()
    return total / (len(x) * len(y))
