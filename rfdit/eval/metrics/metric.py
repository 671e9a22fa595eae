"""Metrics of generated images, as an evaluation uses them.

All of them are `torchmetrics.Metric`s, so that they also serve outside of rfdit, on any number of ranks.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.eval.reference.reference import Reference

CAPTIONS = "captions"  # in `FeatureMetric.reads`: the features of each image's caption


@runtime_checkable
class FeatureMetric(Protocol):
    """One or more numbers, computed from features of the generated images.

    reads: outputs of the network that `update` takes, in order; `CAPTIONS` is one for a network of captions.
    names: keys of what `compute` returns.
    settings: those that change the numbers, for the protocol: {"neighbours": 3}.
    min_images: generated images below which there is no number.
    """

    reads: tuple[str, ...]
    names: tuple[str, ...]
    settings: dict[str, int | float | str]
    min_images: int

    def update(self, *features: Float[Tensor, "b d"]) -> None:
        """Adds a batch of generated images; raises ValueError for features that are not finite."""
        ...

    def compute(self) -> dict[str, Tensor]:
        """The values, 0-d float64; leaves torch's RNG as it was.

        Raises ValueError if there are too few images for a value, warns if there are few.
        """
        ...

    def reset(self) -> None:
        """Forgets the images, keeps the reference."""
        ...

    def to(self, device: torch.device) -> "FeatureMetric":
        """Moves its state to a device."""
        ...


@runtime_checkable
class ReferenceMetric(FeatureMetric, Protocol):
    """A metric that compares with a reference set."""

    def compare_with(self, reference: Reference) -> None:
        """Sets the reference, before the first update.

        Raises ValueError if it lacks what the metric needs: moments of this output, or its features.
        """
        ...
