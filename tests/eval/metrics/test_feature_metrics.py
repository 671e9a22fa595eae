"""Metrics of single features against plain implementations of their papers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchmetrics.image
from torch import Tensor, nn

from rfdit.eval.metrics.clip_score import CLIPScore
from rfdit.eval.metrics.gathered import ordered
from rfdit.eval.metrics.inception_score import InceptionScore
from rfdit.eval.metrics.kernel import CLIPMaximumMeanDiscrepancy, KernelInceptionDistance
from rfdit.eval.metrics.manifold import DensityCoverage, PrecisionRecall
from rfdit.eval.metrics.metric import CAPTIONS, FeatureMetric, ReferenceMetric
from tests.support.evaluation.tiny_features import reference_of

REAL, FAKE = 130, 110


@pytest.fixture
def real() -> Tensor:
    return torch.randn(REAL, 6)


@pytest.fixture
def fake(real: Tensor) -> Tensor:
    """Near the real ones, some far away, and one a copy."""
    made = torch.randn(FAKE, 6) * 1.3 + 0.2
    made[7] = real[3]
    return made


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that every metric needs several."""
    for module in ("manifold", "kernel"):
        monkeypatch.setattr(f"rfdit.eval.metrics.{module}.BLOCK", 32)


def measured(metric: ReferenceMetric, real: Tensor, fake: Tensor) -> dict[str, float]:
    metric.compare_with(reference_of({metric.reads[0]: real}))
    for part in fake.split(23):
        metric.update(part)
    return {name: float(value) for name, value in metric.compute().items()}


def distances(a: Tensor, b: Tensor) -> np.ndarray:
    x, y = a.double().numpy(), b.double().numpy()
    return np.array([[np.linalg.norm(p - q) for q in y] for p in x])


def radii(points: Tensor, k: int) -> np.ndarray:
    """Distance to the k-th other point."""
    return np.sort(distances(points, points), axis=1)[:, k]  # the 0-th is the point itself


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_the_paper(real: Tensor, fake: Tensor, k: int) -> None:
    between, around_real, around_fake = distances(real, fake), radii(real, k), radii(fake, k)
    expected = {
        "precision": np.mean([(between[:, j] <= around_real).any() for j in range(FAKE)]),
        "recall": np.mean([(between[i] <= around_fake).any() for i in range(REAL)]),
    }
    assert 0.05 < expected["precision"] < 0.95
    assert measured(PrecisionRecall(neighbours=k), real, fake) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_those_of_the_paper(real: Tensor, fake: Tensor, k: int) -> None:
    inside = distances(real, fake) <= radii(real, k)[:, None]
    expected = {"density": inside.sum() / (k * FAKE), "coverage": inside.any(1).mean()}
    assert 0.05 < expected["coverage"] < 0.95
    assert measured(DensityCoverage(neighbours=k), real, fake) == pytest.approx(expected)


def test_a_set_covers_itself(real: Tensor) -> None:
    assert measured(PrecisionRecall(), real, real) == {"precision": 1, "recall": 1}
    assert measured(DensityCoverage(), real, real)["coverage"] == 1


def kid(real: np.ndarray, fake: np.ndarray) -> float:
    """The unbiased estimate, pair by pair."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(points: np.ndarray) -> float:
        n = len(points)
        return sum(kernel(points[i], points[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    return within(real) + within(fake) - 2 * float(np.mean([kernel(x, y) for x in real for y in fake]))


def test_kid_of_one_whole_subset_is_the_paper_s(real: Tensor, fake: Tensor) -> None:
    metric = KernelInceptionDistance(subsets=1, subset_size=FAKE)
    values = measured(metric, real[:FAKE], fake)
    assert values["kid"] == pytest.approx(kid(real[:FAKE].double().numpy(), fake.double().numpy()), rel=1e-9)
    assert values["kid_std"] == 0


def test_kid_of_subsets_is_torchmetrics_up_to_the_draw(real: Tensor, fake: Tensor) -> None:
    theirs = torchmetrics.image.KernelInceptionDistance(nn.Identity(), subsets=400, subset_size=50)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    mean, deviation = (float(x) for x in theirs.compute())
    values = measured(KernelInceptionDistance(subsets=400, subset_size=50), real, fake)
    # Two means of 400 draws each.
    assert values["kid"] == pytest.approx(mean, abs=4 * deviation * (2 / 400) ** 0.5)
    assert values["kid_std"] == pytest.approx(deviation, rel=0.2)


def test_cmmd_is_the_paper_s(real: Tensor, fake: Tensor) -> None:
    def mean(a: Tensor, b: Tensor) -> float:
        return float(np.exp(-np.square(distances(a, b)) / 200).mean())

    expected = 1000 * (mean(real, real) + mean(fake, fake) - 2 * mean(real, fake))
    metric = CLIPMaximumMeanDiscrepancy(feature="pool")
    assert measured(metric, real, fake)["cmmd"] == pytest.approx(expected, rel=1e-9)
    assert measured(CLIPMaximumMeanDiscrepancy(), real, real)["cmmd"] == pytest.approx(0, abs=1e-9)


def test_inception_score_of_one_split_is_the_paper_s() -> None:
    logits = 3 * torch.randn(60, 8)
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    expected = np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0))), axis=1)))
    metric = InceptionScore(splits=1)
    for part in logits.split(17):
        metric.update(part)
    assert float(metric.compute()["inception_score"]) == pytest.approx(expected, rel=1e-9)


def test_inception_score_of_sure_and_varied_classes_is_their_number() -> None:
    metric = InceptionScore(splits=2)
    metric.update(100 * torch.eye(5).repeat(200, 1))
    values = metric.compute()
    assert float(values["inception_score"]) == pytest.approx(5, rel=0.01)
    assert float(values["inception_score_std"]) < 0.05


def test_clip_score_cuts_each_pair_at_zero() -> None:
    metric = CLIPScore()
    metric.update(torch.tensor([[1.0, 0], [3, 4]]), torch.tensor([[-1.0, 0], [0, 2]]))
    metric.update(torch.tensor([[1.0, 0]]), torch.tensor([[5.0, 0]]))
    assert float(metric.compute()["clip_score"]) == pytest.approx(100 * (0 + 0.8 + 1) / 3)


MANY: list[Callable[[], FeatureMetric]] = [
    PrecisionRecall,
    DensityCoverage,
    lambda: KernelInceptionDistance(subsets=3, subset_size=40),
    lambda: CLIPMaximumMeanDiscrepancy(feature="pool"),
    lambda: InceptionScore(feature="pool"),
]
NAMES = ["precision", "density", "kid", "cmmd", "inception score"]


@pytest.mark.parametrize("make", MANY, ids=NAMES)
def test_numbers_depend_on_no_order_and_leave_the_rng_alone(
    make: Callable[[], FeatureMetric], real: Tensor, fake: Tensor
) -> None:
    values = []
    before = torch.get_rng_state()
    for made in (fake, fake.flip(0)):
        metric = make()
        if isinstance(metric, ReferenceMetric):
            metric.compare_with(reference_of({"pool": real}))
        metric.update(made[:50])
        metric.update(made[50:])
        values.append({name: float(value) for name, value in metric.compute().items()})
        assert tuple(values[-1]) == metric.names
    assert values[0] == values[1]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", MANY, ids=NAMES)
def test_bad_features_and_no_images_are_refused(
    make: Callable[[], FeatureMetric], real: Tensor, fake: Tensor
) -> None:
    metric = make()
    if isinstance(metric, ReferenceMetric):
        metric.compare_with(reference_of({"pool": real}))
    with pytest.raises(ValueError, match="no image was measured"):
        metric.compute()
    fake[5, 2] = torch.inf
    with pytest.raises(ValueError, match="1 of 110 images have features"):
        metric.update(fake)


def test_what_single_features_need_is_asked_of_the_reference_at_once(real: Tensor) -> None:
    moments_only = reference_of({"pool": real}, features={})
    for make in MANY[:4]:
        metric = make()
        assert isinstance(metric, ReferenceMetric)
        with pytest.raises(ValueError, match=r"needs the features pool.*did not keep.*features=N"):
            metric.compare_with(moments_only)


def test_sets_that_are_too_small_are_refused_with_the_numbers(real: Tensor) -> None:
    with pytest.raises(ValueError, match="neighbours=3 needs more than 3 generated images, and there are 3"):
        measured(PrecisionRecall(), real, real[:3])
    for subset, count, whose in ((21, 20, "generated"), (1000, len(real), "reference")):
        with pytest.raises(ValueError, match=f"subset_size={subset} is more than the {count} {whose} images"):
            measured(KernelInceptionDistance(subset_size=subset), real, real[:20])
    score = InceptionScore(splits=10)
    score.update(real[:4])
    with pytest.raises(ValueError, match=r"inception_score.splits=10 is more than the 4 images"):
        score.compute()


def test_only_clip_score_wants_captions() -> None:
    assert CLIPScore().reads == ("image", CAPTIONS)
    assert all(make().reads == ("pool",) for make in MANY)
    assert not any(isinstance(metric, ReferenceMetric) for metric in (CLIPScore(), InceptionScore()))


def test_images_that_share_their_first_features_are_put_in_some_order() -> None:
    features = torch.zeros(4, 10)
    features[:, 3] = torch.tensor([2.0, 1, 3, 1])
    features[:, 5] = torch.tensor([0.0, 5, 0, 4])
    assert ordered([features])[:, 3].tolist() == [1, 1, 2, 3]
    assert ordered([features])[:, 5].tolist() == [4, 5, 0, 0]
