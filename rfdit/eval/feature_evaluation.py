"""Metrics of generated images over the features of one network."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchmetrics import Metric

from rfdit.conditioning import Conditioner
from rfdit.eval.evaluation import Rows
from rfdit.eval.inputs import ChosenInputs, InputSource
from rfdit.eval.metrics.metric import CAPTIONS, FeatureMetric, ReferenceMetric
from rfdit.eval.networks.feature_network import CaptionNetwork, FeatureNetwork
from rfdit.eval.reference.files import load_reference
from rfdit.eval.reference.reference import Reference
from rfdit.limits import Count


class FeatureEvaluation:
    """An `Evaluation` by metrics over the features of one network, through which each image passes once.

    network: computes the features. metrics: the metrics by any names; None leaves one out.
    inputs: labels or captions of the images.
    reference: file for `load_reference`; None if no metric compares with a reference.

    Raises ValueError for settings that do not fit together.
    """

    def __init__(
        self,
        *,
        name: str,
        samples: Count,
        network: FeatureNetwork,
        metrics: Mapping[str, FeatureMetric | None],
        inputs: InputSource,
        reference: str | None = None,
    ) -> None:
        self.name, self.samples, self.network, self.inputs = name, samples, network, inputs
        self.metrics = [metric for metric in metrics.values() if metric is not None]
        self.reference_file = reference
        self._reference: Reference | None = None
        self._device = torch.device("cpu")
        self._check_metrics()
        self._check_outputs()
        for metric in self.metrics:
            if isinstance(metric, Metric):
                # One process measures the images of all; the others do not take part.
                metric.distributed_available_fn = lambda: False

    @property
    def _comparing(self) -> list[ReferenceMetric]:
        return [metric for metric in self.metrics if isinstance(metric, ReferenceMetric)]

    def _check_metrics(self) -> None:
        if not self.metrics:
            raise ValueError("eval.metrics is empty; give one, or eval=none")
        for metric in self.metrics:
            if self.samples < metric.min_images:
                raise ValueError(
                    f"eval.samples={self.samples} is too few for {metric.names[0]}, which needs at least "
                    f"{metric.min_images}; give more samples, or leave it out with eval.metrics.NAME=null"
                )
        names = Counter(name for metric in self.metrics for name in metric.names)
        if repeated := [name for name, n in names.items() if n > 1]:
            raise ValueError(f"eval.metrics: two are called {repeated[0]}; give one another name")
        if self._comparing and self.reference_file is None:
            raise ValueError(
                f"eval.reference is not set, and {self._comparing[0].names[0]} compares with one; make one "
                "with rfdit reference"
            )
        if self.reference_file is not None and not self._comparing:
            raise ValueError(
                f"eval.reference={self.reference_file}: no metric compares with one; leave it out"
            )

    def _check_outputs(self) -> None:
        read = {output for metric in self.metrics for output in metric.reads}
        given = list(self.network.outputs)
        if CAPTIONS in read and not isinstance(self.network, CaptionNetwork):
            raise ValueError(
                f"eval.metrics: clip_score needs a network that reads captions, not {self.network.name}"
            )
        if missing := sorted(read - {CAPTIONS} - set(given)):
            raise ValueError(
                f"eval.network.outputs={given}: the metrics also read {', '.join(missing)}; add it"
            )
        if unread := sorted(set(given) - read):
            raise ValueError(
                f"eval.network.outputs={given}: no metric reads {', '.join(unread)}; leave it out"
            )

    def choose_inputs(self, conditioner: Conditioner, *, seed: int) -> ChosenInputs:
        """See `Evaluation`; raises ValueError for labels where a metric reads captions, too."""
        chosen = self.inputs(self.samples, conditioner, seed=seed)
        reads_captions = any(CAPTIONS in metric.reads for metric in self.metrics)
        if reads_captions and not isinstance(chosen.inputs[0], str):
            raise ValueError(
                "eval.metrics: clip_score needs captions, and this model was trained on class labels"
            )
        return chosen

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> None:
        """See `Evaluation`; reads the reference once, and moves network and metrics to the device."""
        if self.reference_file is not None:
            reference = self._reference or load_reference(self.reference_file)
            reference.check(self.network, image_size)
            for metric in () if self._reference else self._comparing:
                metric.compare_with(reference)
            self._reference = reference
        self._device = device
        self.network.to(device)
        for each in self.metrics:
            each.to(device)

    def rows(self, images: UInt8[Tensor, "b 3 H W"], inputs: Sequence[str] | Sequence[int]) -> Rows:
        """The network's outputs, and `CAPTIONS` if a metric reads them."""
        rows = self.network(images.to(self._device))
        if any(CAPTIONS in metric.reads for metric in self.metrics):
            assert isinstance(self.network, CaptionNetwork)
            rows[CAPTIONS] = self.network.captions([str(caption) for caption in inputs])
        return rows

    def measure(self, batches: Iterable[Rows]) -> dict[str, float]:
        """See `Evaluation`."""
        try:
            for rows in batches:
                for metric in self.metrics:
                    metric.update(*(rows[output] for output in metric.reads))
            return {name: float(value) for metric in self.metrics for name, value in metric.compute().items()}
        finally:
            for metric in self.metrics:
                metric.reset()  # some keep all features

    def settings(self) -> dict[str, dict[str, Any]]:
        """See `Evaluation`."""
        network = self.network
        return {
            "metrics": {
                metric.names[0]: {"output": metric.reads[0]} | metric.settings for metric in self.metrics
            },
            "features": {
                "name": network.name,
                "sha256": network.sha256,
                "resize": network.resize,
                "precision": network.precision,
            },
            "reference": {} if self._reference is None else self._reference.settings(),
        }
