"""The common part of metrics that need the features of all images at once."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from rfdit.eval.networks.feature_network import check_finite
from rfdit.eval.reference.reference import Reference

SEED = 0  # seed of the subsets that metrics draw
BLOCK = 1024  # rows that are compared at a time with all others


class GatheredFeatures(Metric):
    """Base of metrics that keep every feature; see `FeatureMetric`.

    feature: output of the network. settings: those that change the numbers.
    """

    full_state_update = False
    names: tuple[str, ...]
    features: list[Tensor]

    def __init__(self, *, feature: str, **settings: int | float | str) -> None:
        super().__init__()
        self.reads, self.settings = (feature,), settings
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """See `FeatureMetric`."""
        check_finite(features, self.reads[0])
        self.features.append(features)

    def generated(self) -> Float[Tensor, "n d"]:
        """The generated images' features; raises ValueError if there are none."""
        return ordered(self.features)


class ComparedFeatures(GatheredFeatures):
    """Base of metrics that compare every feature with a reference's; see `ReferenceMetric`."""

    _reference: Tensor | None = None

    def compare_with(self, reference: Reference) -> None:
        """See `ReferenceMetric`."""
        self._reference = reference.features_of(self.reads[0], needed_by=self.names[0])

    def sets(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        """(generated, reference) features, float64."""
        assert self._reference is not None, "compare_with comes first"
        generated = self.generated()
        return generated, self._reference.to(generated)


def ordered(batches: list[Tensor] | Tensor) -> Float[Tensor, "n d"]:
    """Features of all batches and ranks as one tensor, float64, sorted by their first values.

    Unsorted, random subsets would depend on batches and ranks. Raises ValueError if there are none.
    """
    features = torch.cat(batches) if isinstance(batches, list) and batches else batches
    if not isinstance(features, Tensor) or not len(features):
        raise ValueError("no image was measured")
    # Images whose first 8 features are all the same are the same image, or blank.
    keys = features[:, :8].cpu().numpy().T[::-1]
    order = torch.from_numpy(np.lexsort(keys)).to(features.device)
    return features[order].double()


def mean_and_deviation(metric: Metric, prefix: str) -> dict[str, Tensor]:
    """Values of a torchmetrics metric over random subsets, drawn from `SEED` and not from torch's RNG."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        mean, deviation = metric.compute()
    return {prefix: mean, f"{prefix}_std": deviation}


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """|x_i - y_j|^2 = |x_i|^2 + |y_j|^2 - 2 x_i . y_j for all pairs; cancels, so both should be float64."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    return squares.addmm_(x, y.T, alpha=-2).clamp_(min=0)
