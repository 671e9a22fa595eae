"""One feature network and all the metrics that read it: each image passes through it once."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.eval.features import FeatureNetwork
from rfdit.eval.metric import CaptionMetric, FeatureMetric


class Measurement:
    """Feeds generated images to the metrics of one network.

    network: computes at least the outputs that the metrics read.
    metrics: with distinct names.
    reference: file for `load_reference`; None if no metric compares with one.
    image_size: (height, width) of the images to come, which must be the reference's.

    Raises ValueError for a reference that is missing, unneeded, or does not fit the network, the
    metrics or the image size.
    """

    def __init__(
        self,
        *,
        network: FeatureNetwork,
        metrics: Sequence[FeatureMetric | CaptionMetric],
        reference: str | None = None,
    ) -> None:
        raise NotImplementedError

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> Self:
        """Reads and checks the reference for images of (height, width), and moves everything to the device.

        To be called before the first `update`; cheap the second time. Raises ValueError, see above.
        """
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """Of all values."""
        raise NotImplementedError

    @property
    def needs_captions(self) -> bool:
        """Whether `update` wants captions."""
        raise NotImplementedError

    def update(self, images: UInt8[Tensor, "b 3 H W"], captions: Sequence[str] | None = None) -> None:
        """Adds this rank's images; batches may be of any size and ranks may have unequal numbers of them."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Every metric's values over all ranks; a collective call, on every rank."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets the images; keeps network and reference."""
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        """JSON: network, weights_sha256, resize, precision, reference {...}, metrics {name: settings}."""
        raise NotImplementedError
