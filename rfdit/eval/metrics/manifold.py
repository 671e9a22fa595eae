"""The overlap of two sets of features: precision, recall, density and coverage."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rfdit.eval.metrics.gathered import BLOCK, ComparedFeatures, squared_distances
from rfdit.limits import Count


class PrecisionRecall(ComparedFeatures):
    """Improved precision and recall (arXiv 1904.06991): the share of images within the other set's manifold.

    precision = mean_j [x_j in some B(y_i)], recall = mean_i [y_i in some B(x_j)], for generated x and
    reference y, where the ball B of a point reaches to its k-th nearest neighbour in its own set, border
    included. Both depend on the numbers of images; ADM compares 10,000 reference images with all generated
    ones. torchmetrics does not have it.

    feature: output of the network. neighbours: k.
    """

    names = ("precision", "recall")

    def __init__(self, *, feature: str = "pool", neighbours: Count = 3) -> None:
        super().__init__(feature=feature, neighbours=neighbours)
        self.neighbours, self.min_images = neighbours, neighbours + 1

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Raises ValueError for k images or fewer in a set."""
        generated, reference = self.sets()
        precise = _in_some_ball(generated, reference, _radii(reference, self.neighbours, "reference"))
        recalled = _in_some_ball(reference, generated, _radii(generated, self.neighbours, "generated"))
        return {"precision": precise.double().mean(), "recall": recalled.double().mean()}


class DensityCoverage(ComparedFeatures):
    """Density and coverage (arXiv 2002.09797): precision and recall that outliers do not inflate.

    density = mean_j |{i: x_j in B(y_i)}| / k, which may exceed 1, and coverage = mean_i [B(y_i) has some
    x_j], for generated x and reference y, with the balls of `PrecisionRecall`.

    feature: output of the network. neighbours: k.
    """

    names = ("density", "coverage")
    min_images = 1

    def __init__(self, *, feature: str = "pool", neighbours: Count = 5) -> None:
        super().__init__(feature=feature, neighbours=neighbours)
        self.neighbours = neighbours

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Raises ValueError for k reference images or fewer."""
        generated, reference = self.sets()
        radii = _radii(reference, self.neighbours, "reference")
        hits = torch.zeros((), dtype=torch.int64, device=generated.device)
        covered = []
        for centres, squared_radii in zip(reference.split(BLOCK), radii.split(BLOCK)):
            inside = squared_distances(centres, generated) <= squared_radii[:, None]
            hits += inside.sum()
            covered.append(inside.any(1))
        return {
            "density": hits.double() / (self.neighbours * len(generated)),
            "coverage": torch.cat(covered).double().mean(),
        }


def _radii(points: Float[Tensor, "n d"], k: int, which: str) -> Float[Tensor, "n"]:
    """Squared distance of each point to its k-th nearest other; raises ValueError for too few points."""
    if len(points) <= k:
        raise ValueError(f"neighbours={k} needs more than {k} {which} images, and there are {len(points)}")
    radii = []
    for start, block in zip(range(0, len(points), BLOCK), points.split(BLOCK)):
        distances = squared_distances(block, points)
        # A point is not its own neighbour, but a copy of it is.
        distances[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _in_some_ball(
    points: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], squared_radii: Float[Tensor, "m"]
) -> Bool[Tensor, "n"]:
    """True for each point that lies within the ball of some centre."""
    return torch.cat([(squared_distances(x, centres) <= squared_radii).any(1) for x in points.split(BLOCK)])
