"""The adaptive solver: as exact as its tolerances, within its interval of times, counted, and bounded."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rfdit.sampler import Dopri5, NoGuidance, Sampler
from tests.support.models.fields import (
    MEAN,
    START,
    STD,
    GaussianBackbone,
    exact,
    means,
    mixture_velocity,
    nonlinear,
)

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


class Counted:
    """A field that records the times at which it was evaluated."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        self.times.append(t.item())
        return nonlinear(z, t)


def test_error_follows_the_tolerances_as_fifth_order_does() -> None:
    """Errors fall at the fifth power of the evaluations or faster, in float64 down to 1e-11."""
    evaluations, errors = [], []
    for tolerance in (1e-5, 1e-7, 1e-9, 1e-11):
        field = Counted()
        z = Dopri5(rtol=tolerance, atol=tolerance).step(field, START, ONE, ZERO)
        error = (z - exact(START)).abs().max().item()
        assert error < 10 * tolerance
        evaluations.append(len(field.times))
        errors.append(error)
    assert np.polyfit(np.log(evaluations), np.log(errors), 1)[0] < -4.5


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0), (0.6, 0.2)])
def test_no_time_outside_the_step_is_evaluated(start: float, end: float) -> None:
    field = Counted()
    Dopri5().step(field, START / 4, torch.tensor(start), torch.tensor(end))
    assert min(field.times) >= min(start, end) - 1e-7
    assert max(field.times) <= max(start, end) + 1e-7


def test_evaluations_are_counted_and_steps_only_divide_the_way() -> None:
    results = []
    for steps in (1, 4):
        backbone, seen = GaussianBackbone(), []
        sampler = Sampler(solver=Dopri5(), guidance=NoGuidance(), steps=steps)
        z1 = torch.linspace(-2, 2, 16).view(4, 1, 2, 2)
        z0 = sampler(
            backbone, z1, means(4, MEAN), means(4, 0.0), on_step=lambda i, z, seen=seen: seen.append(i)
        )
        assert sampler.evaluations == len(backbone.batches) > 6
        assert seen == list(range(1, steps + 1))
        torch.testing.assert_close(z0, MEAN + STD * z1, atol=1e-3, rtol=0)
        results.append(z0)
    torch.testing.assert_close(*results, atol=1e-3, rtol=0)


def test_every_sample_is_as_exact_as_if_it_were_alone() -> None:
    """A hard sample among easy ones sets the steps; it is not averaged away."""
    hard = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)
    alone = Dopri5().step(nonlinear, hard, ONE, ZERO)
    among = Dopri5().step(nonlinear, torch.cat([hard, torch.zeros(63, 1, 2, 2)]), ONE, ZERO)
    torch.testing.assert_close(among[:1], alone, atol=1e-12, rtol=0)


def test_too_many_evaluations_are_an_error_that_says_what_to_do() -> None:
    solver = Dopri5(rtol=1e-9, atol=1e-9, max_evaluations=50)
    with pytest.raises(ValueError, match=r"max_evaluations=50 did not suffice .* raise it, or give larger"):
        solver.step(mixture_velocity, START, ONE, ZERO)


@pytest.mark.parametrize(("rtol", "atol"), [(-1.0, 1.0), (1.0, -1.0), (0.0, 0.0)])
def test_tolerances_that_no_step_meets_are_refused(rtol: float, atol: float) -> None:
    with pytest.raises(ValueError, match="must not be negative, and one of them positive"):
        Dopri5(rtol=rtol, atol=atol)
