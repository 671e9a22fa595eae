"""Features that are kept one by one until a metric is computed."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 1024  # rows that are compared at a time with all others


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
