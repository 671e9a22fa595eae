"""What a metric over features is; all are `torchmetrics.Metric`s, so that ranks merge."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.eval.reference_set import Reference


@runtime_checkable
class FeatureMetric(Protocol):
    """A number, or several, of the generated images' features.

    feature: the network's output that it reads.
    names: the keys of what `compute` returns.
    settings: what changes its numbers, for the protocol: {"k": 3}.
    least: generated images without which there is no number.
    """

    feature: str
    least: int
    names: tuple[str, ...]
    settings: dict[str, int | float | str]

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """Adds a batch of generated images; raises ValueError for features that are not finite.

        A rank without images adds a batch of none, so that ranks know the features' width.
        """
        ...

    def compute(self) -> dict[str, Tensor]:
        """Its values over all ranks, 0-d float64; leaves torch's RNG as it was.

        Raises ValueError where there are too few images for a value, warns where there are few.
        """
        ...

    def reset(self) -> None:
        """Forgets the images, not the reference."""
        ...

    def to(self, device: torch.device) -> "FeatureMetric":
        """Moves its state."""
        ...


@runtime_checkable
class ReferenceMetric(FeatureMetric, Protocol):
    """A metric that compares with a reference set."""

    def compare_with(self, reference: Reference) -> None:
        """Takes the reference, before the first update.

        Raises ValueError if it lacks what the metric needs: moments of this output, or its features.
        """
        ...


@runtime_checkable
class CaptionMetric(Protocol):
    """A metric of images with their captions: as `FeatureMetric`, but for `update`.

    of_captions: True, since protocols are told apart by what they have.
    """

    of_captions: bool
    feature: str
    least: int
    names: tuple[str, ...]
    settings: dict[str, int | float | str]

    def update(self, features: Float[Tensor, "b d"], captions: Float[Tensor, "b d"]) -> None:
        """Adds a batch, with what `CaptionNetwork.captions` says of the captions."""
        ...

    def compute(self) -> dict[str, Tensor]: ...

    def reset(self) -> None: ...

    def to(self, device: torch.device) -> "CaptionMetric": ...
