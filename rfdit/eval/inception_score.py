"""The Inception Score: how sure and how varied the classes of the generated images are."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from rfdit.eval.feature_list import joined
from rfdit.eval.features import check_finite

SEED = 0  # of the splits


class InceptionScore(Metric):
    """exp E KL(p(y|x) || p(y)), mean and deviation over splits (arXiv 1606.03498); needs no reference.

    The number is torchmetrics' own, computed in float64. Around it: the features of all ranks come in
    one order and the splits from a seed, so that it is the same on any number of ranks and torch's RNG
    stays as it was.

    feature: the output of the network with the classes' logits. splits: how many.
    """

    full_state_update = False
    higher_is_better = True
    names = ("inception_score", "inception_score_std")
    features: list[Tensor]

    def __init__(self, *, feature: str = "logits", splits: int = 10) -> None:
        super().__init__()
        if splits < 1:
            raise ValueError(f"splits={splits}: the Inception Score is over at least 1")
        self.feature, self.splits, self.settings = feature, splits, {"splits": splits}
        self.least = splits
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """See `FeatureMetric`."""
        check_finite(features, self.feature)
        self.features.append(features)

    def compute(self) -> dict[str, Tensor]:
        """Raises ValueError for fewer images than splits. The deviation of one split is NaN."""
        from torchmetrics.image.inception import InceptionScore as OverSplits

        logits = joined(self.features)
        if len(logits) < self.splits:
            raise ValueError(f"inception_score.splits={self.splits} is more than the {len(logits)} images")
        score = OverSplits(nn.Identity(), splits=self.splits, sync_on_compute=False).to(logits.device)
        score.update(logits)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            mean, deviation = score.compute()
        return {"inception_score": mean, "inception_score_std": deviation}
