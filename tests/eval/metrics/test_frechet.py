"""The Frechet distance against its formula, and its moments against numpy."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from rfdit.eval.metrics.frechet import FrechetDistance, frechet_distance
from rfdit.eval.metrics.moments import FeatureMoments, sums
from tests.support.evaluation.tiny_features import reference_of


def drawn(n: int, d: int, *, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated features."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator) / d**0.5
    return torch.randn(n, d, generator=generator) @ mixing + shift


def measured(metric: FrechetDistance, reference: Tensor, features: Tensor, batch: int = 64) -> float:
    metric.compare_with(reference_of({metric.reads[0]: reference}))
    for part in features.split(batch):
        metric.update(part)
    return float(metric.compute()[metric.names[0]])


def test_commuting_gaussians_have_the_distance_of_the_formula() -> None:
    """The distance is |m1 - m2|^2 + sum (s1 - s2)^2 if the covariances share eigenvectors."""
    axes = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    deviations = [torch.rand(16, dtype=torch.float64) + 0.1 for _ in range(2)]
    means = [torch.randn(16, dtype=torch.float64) for _ in range(2)]
    sets = [FeatureMoments(None, m, axes @ torch.diag(s**2) @ axes.T) for m, s in zip(means, deviations)]
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    torch.testing.assert_close(frechet_distance(*sets), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("n", [500, 40], ids=["full rank", "fewer images than features"])
def test_eigenvalues_agree_with_scipy_s_matrix_root(n: int) -> None:
    a, b = (FeatureMoments.of(drawn(n, 64, seed=seed)) for seed in (1, 2))
    product = a.covariance.numpy() @ b.covariance.numpy()
    # scipy's root of a singular matrix needs a push, as in pytorch-fid.
    eps = 0 if n > 64 else 1e-10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = scipy.linalg.sqrtm(product + eps * np.eye(64)).real
    expected = np.square((a.mean - b.mean).numpy()).sum() + np.trace(
        a.covariance.numpy() + b.covariance.numpy() - 2 * root
    )
    tolerance = 1e-9 if n > 64 else 1e-4
    assert float(frechet_distance(a, b)) == pytest.approx(expected, rel=tolerance)
    assert float(frechet_distance(b, a)) == pytest.approx(float(frechet_distance(a, b)), rel=1e-9)


@pytest.mark.parametrize("n", [500, 40], ids=["full rank", "fewer images than features"])
def test_a_set_is_at_no_distance_from_itself(n: int) -> None:
    features = drawn(n, 64, seed=3)
    moments = FeatureMoments.of(features)
    assert abs(float(frechet_distance(moments, moments))) < 1e-8 * float(moments.covariance.trace())


def test_moments_of_batches_are_numpy_s_even_far_from_zero() -> None:
    features = drawn(1000, 16, seed=4, shift=100.0)
    batches = [sums(part) for part in features.split(33)]
    moments = FeatureMoments.from_sums(*(torch.stack(parts).sum(0) for parts in zip(*batches)))
    expected = np.cov(features.double().numpy(), rowvar=False)
    np.testing.assert_allclose(moments.covariance.numpy(), expected, rtol=0, atol=1e-10 * expected.max())
    np.testing.assert_allclose(moments.mean.numpy(), features.double().mean(0).numpy(), rtol=1e-13)
    assert moments.count == 1000


def test_the_metric_reads_its_own_output_and_says_its_own_name() -> None:
    metric = FrechetDistance(feature="spatial", name="sfid")
    real, fake = drawn(300, 20, seed=5), drawn(200, 20, seed=6, shift=0.1)
    expected = float(frechet_distance(FeatureMoments.of(real), FeatureMoments.of(fake)))
    assert measured(metric, real, fake) == pytest.approx(expected, rel=1e-10)
    assert metric.names == ("sfid",)


def test_forgetting_the_images_keeps_the_reference() -> None:
    metric = FrechetDistance()
    real, fake = drawn(300, 20, seed=5), drawn(200, 20, seed=6)
    first = measured(metric, real, real)
    metric.reset()
    metric.update(fake)
    assert float(metric.compute()["fid"]) > first + 0.01


def test_too_few_images_are_warned_of_with_the_numbers() -> None:
    with pytest.warns(UserWarning, match="fid comes from 20 generated images and 20 features.*more than 20"):
        measured(FrechetDistance(), drawn(21, 20, seed=7), drawn(20, 20, seed=8))
    with pytest.warns(UserWarning, match="fid comes from 19 reference images and 20 features"):
        measured(FrechetDistance(), drawn(19, 20, seed=7), drawn(40, 20, seed=8))


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="needs at least 2 images, and there are 1"):
        measured(FrechetDistance(), drawn(30, 4, seed=9), drawn(1, 4, seed=9))


def test_features_that_are_not_finite_are_refused() -> None:
    features = drawn(8, 4, seed=9)
    features[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 8 images have features \(pool\) that are NaN"):
        measured(FrechetDistance(), drawn(30, 4, seed=9), features)


def test_a_reference_without_the_output_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sfid needs the moments of spatial, and the reference .* pool"):
        FrechetDistance(feature="spatial", name="sfid").compare_with(
            reference_of({"pool": drawn(9, 2, seed=0)})
        )
