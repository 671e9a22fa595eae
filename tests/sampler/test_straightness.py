"""The straightness of paths against the closed form of Gaussian data."""

import pytest
import torch
from torch import Tensor

from rfdit.sampler.straightness import straightness
from tests.support.models.fields import MEAN, STD, gaussian_velocity

Z1 = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1))


def curved(z: Tensor, t: Tensor) -> Tensor:
    return gaussian_velocity(z, t, MEAN, STD)


def test_it_is_that_of_the_flow_of_gaussian_data() -> None:
    """z_t = (1 - t) mean + sqrt(V) z1, so S = z1^2 (int (d sqrt(V) / dt)^2 dt - (1 - std)^2)."""
    t = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    variance, slope = (1 - t) ** 2 * STD**2 + t**2, 2 * t - 2 * (1 - t) * STD**2
    factor = (slope**2 / (4 * variance)).mean() - (1 - STD) ** 2
    expected = (factor * Z1.double().square().flatten(1).mean(1)).float()
    torch.testing.assert_close(straightness(curved, Z1, steps=2000), expected, rtol=2e-3, atol=0)


def test_straight_paths_have_none() -> None:
    def straight(z: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(z, 3.0)

    assert straightness(straight, Z1, steps=7).max() < 1e-12
    assert straightness(curved, Z1, steps=1).max() == 0


def test_a_sample_does_not_depend_on_its_batch() -> None:
    whole = straightness(curved, Z1, steps=5)
    assert straightness(curved, Z1[2:4], steps=5) == pytest.approx(whole[2:4])
    assert whole.min() > 0
