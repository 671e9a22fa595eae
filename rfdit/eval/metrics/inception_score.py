"""The Inception Score: how certain and how varied the classes of the generated images are."""

from jaxtyping import Float
from torch import Tensor, nn

from rfdit.eval.metrics.gathered import GatheredFeatures, mean_and_deviation
from rfdit.limits import Count


class InceptionScore(GatheredFeatures):
    """exp(mean_i KL(p_i || mean_j p_j)) with p_i = softmax(logits_i), over splits (arXiv 1606.03498).

    Mean and standard deviation over the splits, as torchmetrics computes them, in float64. It needs no
    reference.

    feature: output of the network with the classes' logits. splits: their number.
    """

    higher_is_better = True
    names = ("inception_score", "inception_score_std")

    def __init__(self, *, feature: str = "logits", splits: Count = 10) -> None:
        super().__init__(feature=feature, splits=splits)
        self.splits = self.min_images = splits

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Raises ValueError for fewer images than splits. The deviation of one split is NaN."""
        from torchmetrics.image.inception import InceptionScore as OverSplits

        logits = self.generated()
        if len(logits) < self.splits:
            raise ValueError(f"inception_score.splits={self.splits} is more than the {len(logits)} images")
        score = OverSplits(nn.Identity(), splits=self.splits, sync_on_compute=False).to(logits.device)
        score.update(logits)
        return mean_and_deviation(score, "inception_score")
