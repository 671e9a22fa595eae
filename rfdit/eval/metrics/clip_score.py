"""CLIP score: the agreement of images with their captions."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from rfdit.eval.metrics.metric import CAPTIONS
from rfdit.eval.networks.feature_network import check_finite


class CLIPScore(Metric):
    """The mean over images of 100 max(cos(image, caption), 0) (arXiv 2104.08718, whose own factor is 2.5).

    torchmetrics' class clips the mean at 0 instead of each pair, and would run the network once more
    than the metrics that read the same features.

    feature: output of the network that shares a space with its captions.
    """

    full_state_update = False
    higher_is_better = True
    names = ("clip_score",)
    min_images = 1
    total: Tensor
    count: Tensor

    def __init__(self, *, feature: str = "image") -> None:
        super().__init__()
        self.reads, self.settings = (feature, CAPTIONS), {"scale": 100.0}
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, features: Float[Tensor, "b d"], captions: Float[Tensor, "b d"]) -> None:
        """See `FeatureMetric`."""
        for output, values in zip(self.reads, (features, captions)):
            check_finite(values, output)
        cosine = torch.cosine_similarity(features.double(), captions.double())
        self.total += 100 * cosine.clamp(min=0).sum()
        self.count += len(features)

    def compute(self) -> dict[str, Tensor]:
        """Raises ValueError if there was no image."""
        if not self.count:
            raise ValueError("no image was measured")
        return {"clip_score": self.total / self.count}
