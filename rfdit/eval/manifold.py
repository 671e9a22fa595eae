"""How much of two sets overlaps: precision, recall, density and coverage of features."""

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.eval.feature_list import BLOCK, KeptFeatures, squared_distances


class PrecisionRecall(KeptFeatures):
    """Improved precision and recall (arXiv 1904.06991): how many are inside the other set's manifold.

    A set's manifold is the union of balls around its points that reach to the k-th nearest of the
    set's own, border included. torchmetrics has none.

    feature: the output of the network. neighbours: k.
    Both numbers depend on how many images there are; ADM takes 10,000 real
    ones and all that were generated.
    """

    names = ("precision", "recall")

    def __init__(self, *, feature: str = "pool", neighbours: int = 3) -> None:
        super().__init__(feature=feature)
        _check_neighbours(neighbours)
        self.neighbours = neighbours
        self.settings = {"neighbours": neighbours}
        self.least = neighbours + 1

    def compute(self) -> dict[str, Tensor]:
        """Shares of generated images and of reference images."""
        fake, real = self.sets()
        inside_real = _is_inside(fake, real, _radii(real, self.neighbours, "reference"))
        inside_fake = _is_inside(real, fake, _radii(fake, self.neighbours, "generated"))
        return {"precision": inside_real.double().mean(), "recall": inside_fake.double().mean()}


class DensityCoverage(KeptFeatures):
    """Density and coverage (arXiv 2002.09797): precision and recall that outliers do not inflate.

    Density: in how many balls around reference points a generated one is, over k; it may exceed 1.
    Coverage: the share of reference points with a generated one in their ball. Balls reach to the
    k-th nearest reference point, border included.

    feature: the output of the network. neighbours: k.
    """

    names = ("density", "coverage")
    least = 1

    def __init__(self, *, feature: str = "pool", neighbours: int = 5) -> None:
        super().__init__(feature=feature)
        _check_neighbours(neighbours)
        self.neighbours = neighbours
        self.settings = {"neighbours": neighbours}

    def compute(self) -> dict[str, Tensor]:
        """Density, and the share of reference images that are covered."""
        fake, real = self.sets()
        radii = _radii(real, self.neighbours, "reference")
        balls = torch.zeros((), dtype=torch.int64, device=fake.device)
        covered = []
        for points, reach in zip(real.split(BLOCK), radii.split(BLOCK)):
            inside = squared_distances(points, fake) <= reach[:, None]
            balls += inside.sum()
            covered.append(inside.any(1))
        return {
            "density": balls.double() / (self.neighbours * len(fake)),
            "coverage": torch.cat(covered).double().mean(),
        }


def _check_neighbours(neighbours: int) -> None:
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}: a ball reaches to the first neighbour or a later one")


def _radii(points: Float[Tensor, "n d"], neighbours: int, whose: str) -> Float[Tensor, "n"]:
    """Squared distance of each point to its k-th nearest other; raises ValueError for too few points."""
    if len(points) <= neighbours:
        raise ValueError(
            f"neighbours={neighbours} needs more than {neighbours} {whose} images, and there are {len(points)}"
        )
    radii = []
    for start, block in zip(range(0, len(points), BLOCK), points.split(BLOCK)):
        distances = squared_distances(block, points)
        # A point is not its own neighbour, but a copy of it is.
        distances[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        radii.append(distances.kthvalue(neighbours, dim=1).values)
    return torch.cat(radii)


def _is_inside(
    points: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], radii: Float[Tensor, "m"]
) -> Tensor:
    """Whether each point is in some ball."""
    return torch.cat([(squared_distances(x, centres) <= radii).any(1) for x in points.split(BLOCK)])
