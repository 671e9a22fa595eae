"""One network, the metrics that read it, and the reference that they compare with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rfdit.config.build import build
from rfdit.eval.feature_evaluation import FeatureEvaluation
from rfdit.eval.inputs import BalancedLabels
from rfdit.eval.metrics.clip_score import CLIPScore
from rfdit.eval.metrics.frechet import FrechetDistance
from rfdit.eval.metrics.inception_score import InceptionScore
from rfdit.eval.metrics.manifold import PrecisionRecall
from rfdit.eval.reference.files import save_reference
from tests.support.commands.composing import composed
from tests.support.evaluation.tiny_features import TinyFeatures, reference_of

CPU = torch.device("cpu")


@pytest.fixture
def features() -> Tensor:
    return torch.randn(30, 4)


def evaluation_by(
    network: TinyFeatures, *metrics: Any, reference: str | None, samples: int = 40
) -> FeatureEvaluation:
    return FeatureEvaluation(
        name="tiny",
        samples=samples,
        network=network,
        metrics={str(i): metric for i, metric in enumerate(metrics)},
        inputs=BalancedLabels(),
        reference=reference,
    )


def test_an_evaluation_says_what_does_not_fit_together(features: Tensor, tmp_path: Path) -> None:
    file = str(tmp_path / "real.npz")
    save_reference(reference_of({"pool": features}), Path(file))
    tiny, fid = TinyFeatures(), FrechetDistance()
    for network, metrics, path, said in (
        (tiny, [FrechetDistance(feature="spatial", name="sfid")], file, "metrics also read spatial; add it"),
        (TinyFeatures(outputs=("pool", "logits")), [fid], file, "no metric reads logits"),
        (tiny, [fid, FrechetDistance()], file, "two are called fid"),
        (tiny, [fid], None, "eval.reference is not set, and fid compares with one"),
        (tiny, [InceptionScore(feature="pool")], file, "no metric compares with one"),
        (tiny, [CLIPScore(feature="pool")], None, "needs a network that reads captions, not tiny"),
        (tiny, [None], None, "eval.metrics is empty"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluation_by(network, *metrics, reference=path)


def test_an_evaluation_feeds_every_metric_and_tells_its_settings(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    made = reference_of({"pool": TinyFeatures()(images)["pool"]})
    save_reference(made, tmp_path / "real.npz")
    evaluation = evaluation_by(
        TinyFeatures(), FrechetDistance(), PrecisionRecall(), reference=str(tmp_path / "real.npz")
    )
    evaluation.prepare((8, 8), CPU)
    values = evaluation.measure(evaluation.rows(batch, []) for batch in images.split(7))
    assert values == {"fid": pytest.approx(0, abs=1e-5), "precision": 1, "recall": 1}
    settings = evaluation.settings()
    assert settings["reference"] == made.settings()
    assert settings["metrics"] == {
        "fid": {"output": "pool"},
        "precision": {"output": "pool", "neighbours": 3},
    }
    # Nothing is left of the images before.
    evaluation.prepare((8, 8), CPU)
    assert evaluation.measure([evaluation.rows(255 - images[:20], [])])["fid"] > 1


@pytest.mark.parametrize("option", ["quick", "fid50k"])
def test_another_network_takes_inception_s_place(option: str) -> None:
    settings = ["network@eval.network=dinov2", "eval.network.weights=x", "eval.metrics.sfid=null"]
    named = ["+eval.metrics.fid.feature=cls", "+eval.metrics.fid.name=fd_dinov2"]
    node = composed("sample", f"eval={option}", *settings, *named)["eval"]
    assert isinstance(node, dict)
    assert node["network"]["_target_"] == "rfdit.eval.networks.dinov2.DINOv2Features"
    (metric,) = (build(each) for each in node["metrics"].values() if each is not None)
    assert (metric.reads, metric.names) == (("cls",), ("fd_dinov2",))
