"""Features that are kept one by one until a metric is computed."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from rfdit.eval.features import check_finite
from rfdit.eval.reference_set import Reference

BLOCK = 1024  # rows that are compared at a time with all others


class KeptFeatures(Metric):
    """What metrics share that keep every feature and compare them with a reference's; see `ReferenceMetric`.

    feature: the output of the network.
    """

    full_state_update = False
    names: tuple[str, ...]
    features: list[Tensor]

    def __init__(self, *, feature: str) -> None:
        super().__init__()
        self.feature = feature
        self.add_state("features", [], dist_reduce_fx="cat")
        self._reference: Tensor | None = None

    def compare_with(self, reference: Reference) -> None:
        """See `ReferenceMetric`."""
        self._reference = reference.features_of(self.feature, needed_by=self.names[0])

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """See `FeatureMetric`."""
        check_finite(features, self.feature)
        self.features.append(features)

    def sets(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        """(generated, reference) features of all ranks, float64."""
        assert self._reference is not None, "compare_with comes first"
        fake = joined(self.features)
        return fake, self._reference.to(fake)


def joined(batches: list[Tensor] | Tensor) -> Float[Tensor, "n d"]:
    """All ranks' features as one, float64, in an order that does not depend on the ranks.

    Numbers of random subsets would otherwise be others on two GPUs than on one.
    Raises ValueError if there are none.
    """
    features = torch.cat(batches) if isinstance(batches, list) and batches else batches
    if not isinstance(features, Tensor) or not len(features):
        raise ValueError("no image was measured")
    return features[_order(features)].double()


def _order(features: Float[Tensor, "n d"]) -> Int[Tensor, "n"]:
    """Sorts rows by their numbers, the first that differ decide."""
    # Images whose first 8 features are all the same are the same image, or blank.
    keys = features[:, :8].cpu().numpy().T[::-1]
    return torch.from_numpy(np.lexsort(keys)).to(features.device)


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """|x_i - y_j|^2 for all pairs, by a matrix product; both should be float64, since it cancels."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    return squares.addmm_(x, y.T, alpha=-2).clamp_(min=0)
