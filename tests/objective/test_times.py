"""Time densities against their closed forms, all oriented so that t = 1 is noise."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq

from rfdit.model import VPSchedule
from rfdit.objective import (
    CosMapTime,
    LogitNormalTime,
    ModeTime,
    StepTime,
    TimeSampler,
    TimestepTime,
    UniformTime,
)
from rfdit.randomness import SampleGenerator


def draw(time: TimeSampler, n: int = 20000) -> np.ndarray:
    """n times, each of its own sample."""
    return time(SampleGenerator(seed=3, keys=torch.arange(n))).double().numpy()


def mode_cdf(scale: float) -> np.ufunc:
    """P(t <= x) by inverting the map u -> t, which falls from 1 to 0 (arXiv 2403.03206, eq. 20)."""

    def mapped(u: float) -> float:
        return 1 - u - scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)

    return np.vectorize(lambda x: 1 - brentq(lambda u: mapped(u) - x, 0, 1))


def logit_normal_pdf(t: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Eq. 19."""
    logit = np.log(t / (1 - t))
    return np.exp(-((logit - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * t * (1 - t))


def cosmap_pdf(t: np.ndarray) -> np.ndarray:
    """Eq. 21: 2 / (pi - 2 pi t + 2 pi t^2)."""
    return 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2)


def histogram_of(pdf: np.ndarray, bins: int) -> np.ndarray:
    """Each bin's probability, by the midpoint rule on a fine grid."""
    return pdf.reshape(bins, -1).mean(1) / bins


@pytest.mark.parametrize("steps", [1, 2, 3, 25])
def test_steps(steps: int) -> None:
    """The times before each of Euler's steps, each as often as the others."""
    times, counts = np.unique(draw(StepTime(steps=steps)), return_counts=True)
    assert times == pytest.approx([k / steps for k in range(1, steps + 1)], rel=1e-7)
    assert times[-1] == 1
    assert counts / 20000 == pytest.approx([1 / steps] * steps, abs=0.015)


def test_uniform() -> None:
    assert stats.kstest(draw(UniformTime()), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5), (-1.0, 1.5)])
def test_logit_normal(mean: float, std: float) -> None:
    t = draw(LogitNormalTime(mean=mean, std=std))
    assert stats.kstest(np.log(t / (1 - t)), stats.norm(mean, std).cdf).pvalue > 1e-3
    fine = (np.arange(20000) + 0.5) / 20000
    expected = histogram_of(logit_normal_pdf(fine, mean, std), 20)
    seen = np.histogram(t, bins=20, range=(0, 1))[0] / len(t)
    np.testing.assert_allclose(seen, expected, atol=5 * np.sqrt(expected.max() / len(t)))


def test_a_positive_mean_prefers_noise() -> None:
    assert draw(LogitNormalTime(mean=1.0)).mean() > 0.6
    assert draw(LogitNormalTime(mean=-1.0)).mean() < 0.4


@pytest.mark.parametrize("scale", [-0.9, 0.0, 0.81, 1.29])
def test_mode(scale: float) -> None:
    t = draw(ModeTime(scale=scale), 4000)
    assert stats.kstest(t, mode_cdf(scale)).pvalue > 1e-3


def test_a_positive_mode_scale_prefers_the_middle() -> None:
    def middle(scale: float) -> float:
        return float((abs(draw(ModeTime(scale=scale)) - 0.5) < 0.25).mean())

    assert middle(1.29) > 0.6
    assert middle(-0.9) < 0.4


def test_mode_is_oriented_as_its_formula() -> None:
    """The largest u is the least t."""
    generator = SampleGenerator(seed=3, keys=torch.arange(1000))
    u, t = generator.uniform(), ModeTime(scale=1.0)(generator)
    assert (t[u.argsort()].diff() <= 0).all()


def test_cosmap() -> None:
    fine = (np.arange(20000) + 0.5) / 20000
    cdf = np.cumsum(cosmap_pdf(fine)) / 20000
    assert cdf[-1] == pytest.approx(1, abs=1e-6)
    assert stats.kstest(draw(CosMapTime()), lambda x: np.interp(x, fine, cdf)).pvalue > 1e-3


def test_timesteps_are_those_of_the_schedule_each_as_likely() -> None:
    schedule = VPSchedule(timesteps=50)
    t = draw(TimestepTime(schedule=schedule))
    times, counts = np.unique(t, return_counts=True)
    np.testing.assert_allclose(times, schedule.times, rtol=1e-6)
    assert stats.chisquare(counts).pvalue > 1e-3


EVERY = [UniformTime(), LogitNormalTime(), ModeTime(), CosMapTime(), TimestepTime(schedule=VPSchedule())]


@pytest.mark.parametrize("time", EVERY, ids=lambda time: type(time).__name__)
def test_every_time_lies_within_the_interval_and_belongs_to_its_sample(time: TimeSampler) -> None:
    t = time(SampleGenerator(seed=0, keys=torch.arange(4096)))
    assert t.shape == (4096,)
    assert t.dtype == torch.float32
    assert (t >= 0).all()
    assert (t <= 1).all()
    alone = time(SampleGenerator(seed=0, keys=torch.tensor([17])))
    torch.testing.assert_close(alone[0], t[17])


def test_settings_outside_their_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"time\.std=0\.0 must be positive"):
        LogitNormalTime(std=0.0)
    with pytest.raises(ValueError, match=r"time\.scale=2\.0 must lie between -1 and 1\.752"):
        ModeTime(scale=2.0)
