"""Metrics of generated pictures: one feature network, one pass, as many metrics as it serves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchmetrics import Metric

from rfdit.conditioning import Conditioner
from rfdit.eval.evaluation import Rows
from rfdit.eval.features import FeatureNetwork
from rfdit.eval.inputs import Inputs, Wanted
from rfdit.eval.measurement import Measurement
from rfdit.eval.metric import CaptionMetric, FeatureMetric


class GenerationMetrics:
    """`eval=quick` and `eval=fid50k`. See `Evaluation`.

    name: what the numbers are called together. samples: pictures.
    network: looks at each of them once. metrics: over its outputs; None leaves one out.
    reference: file of statistics, for metrics that compare with one.
    inputs: what the pictures show.
    """

    def __init__(
        self,
        *,
        name: str,
        samples: int,
        network: FeatureNetwork,
        metrics: Mapping[str, FeatureMetric | CaptionMetric | None],
        inputs: Inputs,
        reference: str | None = None,
    ) -> None:
        if samples < 1:
            raise ValueError(f"eval.samples={samples} must be at least 1")
        chosen = [metric for metric in metrics.values() if metric is not None]
        if not chosen:
            raise ValueError("eval.metrics is empty; give one, or eval=none")
        for metric in chosen:
            if samples < metric.least:  # said before pictures are made
                raise ValueError(
                    f"eval.samples={samples} is too few for {metric.names[0]}, whose settings ask for at least "
                    f"{metric.least}; give more samples, or leave it out with eval.metrics.NAME=null"
                )
        self.name, self.samples, self.inputs = name, samples, inputs
        self.measurement = Measurement(network=network, metrics=chosen, reference=reference)
        for metric in chosen:
            if isinstance(metric, Metric):
                # What all processes have made comes to one, which takes the numbers alone.
                metric.distributed_available_fn = lambda: False

    def wanted(self, conditioner: Conditioner, *, seed: int) -> Wanted:
        """Raises ValueError for a model that knows no such inputs, or labels where a metric reads captions."""
        wanted = self.inputs(self.samples, conditioner, seed=seed)
        if self.measurement.needs_captions and not isinstance(wanted.inputs[0], str):
            raise ValueError(
                "eval.metrics: clip_score needs captions, and this model was trained on class labels"
            )
        return wanted

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> None:
        self.measurement.prepare(image_size, device)
        self._device = device

    def rows(self, images: UInt8[Tensor, "b 3 H W"], inputs: Sequence[str] | Sequence[int]) -> Rows:
        captions = [str(given) for given in inputs] if self.measurement.needs_captions else None
        return self.measurement.rows(images.to(self._device), captions)

    def measure(self, batches: Iterable[Rows]) -> dict[str, float]:
        self.measurement.reset()
        try:
            for rows in batches:
                self.measurement.add(rows)
            return self.measurement.compute()
        finally:
            self.measurement.reset()  # some metrics keep all features

    def settings(self) -> dict[str, dict[str, Any]]:
        found = self.measurement.protocol()
        reference = found["reference"] or {}
        names = {"data": "name", "data_sha256": "sha256"}
        return {
            "metrics": found["metrics"],
            "features": {
                "name": found["network"],
                "sha256": found["weights_sha256"],
                "resize": found["resize"],
                "precision": found["precision"],
            },
            "reference": {names.get(key, key): value for key, value in reference.items()},
        }
