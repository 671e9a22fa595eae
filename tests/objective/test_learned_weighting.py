"""The learned weighting: its minimum is the log of each noise level's loss, and nothing else changes."""

import math

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.flow import per_sample
from rfdit.network import layers_of
from rfdit.objective import (
    ContrastiveFlowMatching,
    IndependentCoupling,
    LogitNormalTime,
    UncertaintyWeighting,
    UniformTime,
    VelocityMatching,
)
from rfdit.protocols import FlowLoss
from rfdit.randomness import SampleGenerator
from tests.support.models.fields import gaussian_velocity

N, MU, STD = 4096, 0.7, 0.4


def loss_of(weighting: UncertaintyWeighting | None, scale: Tensor | float = 1.0) -> FlowLoss:
    """The loss of the exact velocity of Gaussian data, times `scale`."""
    settings = {} if weighting is None else {"weighting": weighting}
    objective = VelocityMatching(time=LogitNormalTime(), coupling=IndependentCoupling(), **settings)
    z0 = MU + STD * torch.randn(N, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    generator = SampleGenerator(seed=0, keys=torch.arange(N))

    def network(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return scale * gaussian_velocity(z_t, per_sample(t, z_t), MU, STD)

    return objective(network, z0, Condition(pooled=torch.zeros(N, 1)), generator=generator)


def test_it_begins_as_the_loss_without_weights() -> None:
    weighted, plain = loss_of(UncertaintyWeighting()), loss_of(None)
    assert torch.equal(weighted.total, plain.total)
    assert torch.equal(weighted.per_sample, plain.per_sample)
    assert torch.equal(weighted.parts["unweighted"], plain.total)


def test_it_is_the_formula() -> None:
    """mean(l exp(-u) + u), with the series written out, and the gradients of network and coefficients."""
    weighting = UncertaintyWeighting(harmonics=2)
    values = [0.3, -0.2, 0.1, 0.05, -0.4]
    weighting.coefficients.data = torch.tensor(values)
    scale = torch.tensor(0.9, requires_grad=True)
    found, plain = loss_of(weighting, scale), loss_of(None, 0.9)
    found.total.backward()
    x = torch.logit(plain.t.double())
    series = [torch.ones_like(x)]
    series += [torch.cos(2 * math.pi * j * x / 32) for j in (1, 2)]
    series += [torch.sin(2 * math.pi * j * x / 32) for j in (1, 2)]
    u = sum(a * each for a, each in zip(values, series, strict=True))
    error = plain.per_sample.double()
    torch.testing.assert_close(found.total.double(), (error / u.exp() + u).mean(), rtol=1e-5, atol=0)
    slopes = torch.stack([((1 - error / u.exp()) * each).mean() for each in series])
    assert weighting.coefficients.grad is not None
    torch.testing.assert_close(weighting.coefficients.grad.double(), slopes, rtol=1e-4, atol=1e-6)
    each = torch.tensor(0.9, requires_grad=True)
    weights = (1 / u.exp()).float()
    objective = VelocityMatching(
        time=LogitNormalTime(), coupling=IndependentCoupling(), weighting=lambda t: weights
    )
    z0 = MU + STD * torch.randn(N, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    objective(
        lambda z_t, t, cond: each * gaussian_velocity(z_t, per_sample(t, z_t), MU, STD),
        z0,
        Condition(pooled=torch.zeros(N, 1)),
        generator=SampleGenerator(seed=0, keys=torch.arange(N)),
    ).total.backward()
    torch.testing.assert_close(scale.grad, each.grad, rtol=1e-4, atol=1e-6)


def test_its_minimum_is_the_log_of_each_noise_levels_loss() -> None:
    """For the exact velocity of Gaussian data, E[l | t] = s^2 / V(t)."""
    weighting = UncertaintyWeighting()
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss_of(weighting).total
        total.backward()
        return total

    least = optimizer.step(closure)
    t = torch.sigmoid(torch.linspace(-2, 2, 9))
    expected = STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
    torch.testing.assert_close(1 / weighting(t), expected, rtol=0.1, atol=0)
    found = loss_of(weighting)
    assert found.total <= least
    # At the minimum the weighted losses have the mean 1, since u has a constant.
    assert (found.per_sample * weighting(found.t)).mean().item() == pytest.approx(1, abs=1e-3)


def test_the_ends_of_time_have_finite_weights() -> None:
    weighting = UncertaintyWeighting()
    weighting.coefficients.data.normal_()
    assert weighting(torch.tensor([0.0, 1e-30, 0.5, 1.0])).isfinite().all()


def test_bf16_arithmetic_leaves_it_alone() -> None:
    weighting, t = UncertaintyWeighting(), torch.rand(8)
    weighting.coefficients.data.normal_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = weighting(t)
    assert torch.equal(rounded, weighting(t))


def test_losses_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weighting=learned has no minimum .* objective=contrastive"):
        ContrastiveFlowMatching(
            time=UniformTime(), coupling=IndependentCoupling(), weighting=UncertaintyWeighting()
        )


class Forgetful:
    """An objective of a user's own, which does not say that its weighting is learned."""

    def __init__(self) -> None:
        self.weighting = UncertaintyWeighting()

    def __call__(self, *_: object, **__: object) -> FlowLoss:
        raise NotImplementedError


def test_layers_that_an_objective_does_not_name_are_refused() -> None:
    with pytest.raises(
        ValueError, match="objective=Forgetful has layers in `weighting` that nothing would train"
    ):
        layers_of(Forgetful())
    objective = VelocityMatching(
        time=UniformTime(), coupling=IndependentCoupling(), weighting=UncertaintyWeighting()
    )
    assert layers_of(objective) is objective.weighting
