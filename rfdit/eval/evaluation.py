"""The protocol of evaluations, chosen by `eval=...`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.conditioning import Conditioner
from rfdit.eval.inputs import ChosenInputs

Rows = Mapping[str, Tensor]  # data kept of some images, with one row per image


@runtime_checkable
class Evaluation(Protocol):
    """A set of generated images and the metrics of it.

    Images are generated anywhere, in batches, by any number of processes, which keep rows of them.
    One process measures the rows of all images, in the images' order, so that the values do not depend
    on the number of processes.

    name: the common name of the values. samples: number of images.
    """

    name: str
    samples: int

    def choose_inputs(self, conditioner: Conditioner, *, seed: int) -> ChosenInputs:
        """The label or caption of each image; raises ValueError for a model that does not take such inputs."""
        ...

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> None:
        """Called before `rows` and `measure`; raises ValueError for images that cannot be measured."""
        ...

    def rows(self, images: UInt8[Tensor, "b 3 H W"], inputs: Sequence[str] | Sequence[int]) -> Rows:
        """The rows to keep of a batch, on the device."""
        ...

    def measure(self, batches: Iterable[Rows]) -> dict[str, float]:
        """The values, from the rows of all images in order."""
        ...

    def settings(self) -> dict[str, dict[str, Any]]:
        """The protocol's `metrics`, `features` and `reference`; available after `prepare`."""
        ...
