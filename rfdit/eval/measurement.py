"""One feature network and all the metrics that read it: each image passes through it once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rfdit.eval.features import CaptionNetwork, FeatureNetwork
from rfdit.eval.metric import CaptionMetric, FeatureMetric, ReferenceMetric
from rfdit.eval.reference_files import load_reference
from rfdit.eval.reference_set import Reference

CAPTIONS = "captions"  # beside the outputs of the network


class Measurement:
    """Feeds generated images to the metrics of one network.

    network: computes the outputs that the metrics read.
    metrics: with distinct names.
    reference: file for `load_reference`; None if no metric compares with one.

    Raises ValueError for metrics that the network cannot serve, and for a reference that is missing or
    not needed.
    """

    def __init__(
        self,
        *,
        network: FeatureNetwork,
        metrics: Sequence[FeatureMetric | CaptionMetric],
        reference: str | None = None,
    ) -> None:
        self.network, self.metrics, self._path = network, list(metrics), reference
        self._reference: Reference | None = None
        self._place, self._is_empty = ((1, 1), torch.device("cpu")), True
        read = {metric.feature for metric in metrics}
        if missing := sorted(read - set(network.outputs)):
            raise ValueError(
                f"network.outputs={list(network.outputs)}: the metrics also read {', '.join(missing)}; add it"
            )
        if unread := sorted(set(network.outputs) - read):
            raise ValueError(
                f"network.outputs={list(network.outputs)}: no metric reads {', '.join(unread)}; leave it out"
            )
        twice = [name for name, n in Counter(self.names).items() if n > 1]
        if twice:
            raise ValueError(f"metrics: two of them are called {twice[0]}; give one another name")
        if self.needs_captions and not isinstance(network, CaptionNetwork):
            raise ValueError(f"metrics: clip_score needs a network that reads captions, not {network.name}")
        comparing = [metric for metric in metrics if isinstance(metric, ReferenceMetric)]
        if comparing and reference is None:
            raise ValueError(
                f"reference is not set, and {comparing[0].names[0]} compares with one; "
                "python -m rfdit.eval.reference makes it"
            )
        if reference is not None and not comparing:
            raise ValueError(f"reference={reference}: no metric compares with one; leave it out")

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> "Measurement":
        """Reads and checks the reference for images of (height, width), and moves everything to the device.

        To be called before the first `update`; the reference is read once. Raises ValueError, naming
        what does not fit.
        """
        if self._path is not None:
            reference = self._reference or load_reference(self._path)
            reference.check(self.network, image_size)
            if self._reference is None:
                for metric in self.metrics:
                    if isinstance(metric, ReferenceMetric):
                        metric.compare_with(reference)
            self._reference = reference
        self._place = image_size, device
        self.network.to(device)
        for metric in self.metrics:
            metric.to(device)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of all values."""
        return tuple(name for metric in self.metrics for name in metric.names)

    @property
    def needs_captions(self) -> bool:
        """Whether `update` wants captions."""
        return any(isinstance(metric, CaptionMetric) for metric in self.metrics)

    def update(self, images: UInt8[Tensor, "b 3 H W"], captions: Sequence[str] | None = None) -> None:
        """Adds this rank's images; batches may be of any size and ranks may have unequal numbers of them."""
        self.add(self.rows(images, captions))

    def rows(
        self, images: UInt8[Tensor, "b 3 H W"], captions: Sequence[str] | None = None
    ) -> dict[str, Float[Tensor, "b d"]]:
        """All that the metrics read of images, which `add` takes here or in another process."""
        rows = self.network(images)
        if self.needs_captions:
            if captions is None or len(captions) != len(images):
                raise ValueError("clip_score needs one caption for each image")
            assert isinstance(self.network, CaptionNetwork)
            rows[CAPTIONS] = self.network.captions(captions)
        return rows

    def add(self, rows: Mapping[str, Float[Tensor, "b d"]]) -> None:
        """Adds what `rows` gave of some images."""
        self._is_empty &= all(len(values) == 0 for values in rows.values())
        for metric in self.metrics:
            if isinstance(metric, CaptionMetric):
                metric.update(rows[metric.feature], rows[CAPTIONS])
            else:
                metric.update(rows[metric.feature])

    def compute(self) -> dict[str, float]:
        """Every metric's values over all ranks; a collective call, on every rank."""
        if self._is_empty:
            # A rank without images takes part with no rows, which are as wide as the others' rows.
            self._update_with_none()
        values: dict[str, float] = {}
        for metric in self.metrics:
            values |= {name: float(value) for name, value in metric.compute().items()}
        return values

    def _update_with_none(self) -> None:
        size, device = self._place
        features = self.network(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))
        for metric in self.metrics:
            none = features[metric.feature][:0]
            if isinstance(metric, CaptionMetric):
                metric.update(none, none)
            else:
                metric.update(none)

    def reset(self) -> None:
        """Forgets the images; keeps network and reference."""
        self._is_empty = True
        for metric in self.metrics:
            metric.reset()

    def protocol(self) -> dict[str, Any]:
        """JSON; after `prepare`, with what is known of the reference."""
        return {
            "network": self.network.name,
            "weights_sha256": self.network.sha256,
            "resize": self.network.resize,
            "precision": self.network.precision,
            "reference": None if self._reference is None else self._reference.protocol(),
            "metrics": {
                metric.names[0]: {"output": metric.feature} | metric.settings for metric in self.metrics
            },
        }
