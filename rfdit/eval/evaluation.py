"""What `eval=...` offers: which pictures are made, what is kept of them, and the numbers of that."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.conditioning import Conditioner
from rfdit.eval.inputs import Wanted

# What is kept of some pictures: tensors with a row for each.
Rows = Mapping[str, Tensor]


@runtime_checkable
class Evaluation(Protocol):
    """A set of pictures and its metrics.

    Pictures are made anywhere, in batches, by as many processes as there are. What is kept of them
    comes together in one process, in the order of the pictures, so that the numbers are the same.

    name: what the numbers are called together. samples: pictures.
    """

    name: str
    samples: int

    def wanted(self, conditioner: Conditioner, *, seed: int) -> Wanted:
        """What each picture shows; raises ValueError for a model that knows no such inputs."""
        ...

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> None:
        """Before `rows` and `measure`; raises ValueError for pictures that it cannot judge."""
        ...

    def rows(self, images: UInt8[Tensor, "b 3 H W"], inputs: Sequence[str] | Sequence[int]) -> Rows:
        """What is kept of a batch, on the device."""
        ...

    def measure(self, batches: Iterable[Rows]) -> dict[str, float]:
        """The numbers, from what was kept of all pictures, in order; in one process alone."""
        ...

    def settings(self) -> dict[str, dict[str, Any]]:
        """The protocol's `metrics`, `features` and `reference`; once it is prepared."""
        ...
