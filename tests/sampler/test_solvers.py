"""Orders of convergence, by the slope of log error over log steps, and the way back to noise."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from rfdit.sampler import RK4, Dopri5, Euler, Heun, Midpoint, Solver
from tests.support.models.fields import MEAN, START, STD, exact, mixture_velocity, nonlinear


def integrate(solver: Solver, steps: int) -> Tensor:
    z = START
    for t, t_next in pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64)):
        z = solver.step(nonlinear, z, t, t_next)
    return z


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (Midpoint(), 2), (RK4(), 4)])
def test_order(solver: Solver, order: int) -> None:
    steps = [64, 128, 256, 512]
    errors = [(integrate(solver, n) - exact(START)).abs().max().item() for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.15)


def test_heun_may_end_with_eulers_step() -> None:
    t, between, zero = (torch.tensor(x, dtype=torch.float64) for x in (0.3, 0.1, 0.0))
    ending = Heun(last_step="euler")
    assert torch.equal(ending.step(nonlinear, START, t, zero), Euler().step(nonlinear, START, t, zero))
    assert torch.equal(ending.step(nonlinear, START, t, between), Heun().step(nonlinear, START, t, between))
    assert not torch.equal(Heun().step(nonlinear, START, t, zero), Euler().step(nonlinear, START, t, zero))


@pytest.mark.parametrize("solver", [Euler(), Heun(), Midpoint(), RK4(), Dopri5()])
def test_time_runs_down(solver: Solver) -> None:
    """A step of size dt > 0 subtracts dt v."""
    z, v = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    stepped = solver.step(lambda z, t: v, z, torch.tensor(1.0), torch.tensor(0.75))
    torch.testing.assert_close(stepped, torch.full((1, 1, 1, 1), -0.5))


@pytest.mark.parametrize(("solver", "degree"), [(Euler(), 0), (Heun(), 1), (Midpoint(), 1), (RK4(), 3)])
def test_a_slope_that_is_a_polynomial_of_time_is_exact(solver: Solver, degree: int) -> None:
    """One step integrates v = (degree + 1) t^degree exactly: z(0) = z(1) - 1, and no higher power."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for power, is_exact in ((degree, True), (degree + 1, False)):
        z = solver.step(lambda z, t, k=power: (k + 1) * t**k * one, one, torch.tensor(1.0), torch.tensor(0.0))
        assert (z.abs().item() < 1e-6) == is_exact


def stops(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("solver", "steps", "error"),
    [
        (Euler(), 100, 0.1),
        (Heun(), 100, 1e-3),
        (Midpoint(), 100, 1e-3),
        (RK4(), 100, 5e-6),
        (Dopri5(), 1, 1e-2),
        (Dopri5(rtol=1e-6, atol=1e-6), 1, 5e-5),
    ],
)
def test_data_to_noise_and_back(solver: Solver, steps: int, error: float) -> None:
    """Both ways over the exact field of two Gaussians; the largest of 1,024 errors, where data has STD 0.3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 4, 4, generator=generator, dtype=torch.float64)
    data = torch.randn(64, 1, 4, 4, generator=generator, dtype=torch.float64).sign() * MEAN + STD * x
    z = data
    for t, t_next in pairwise(stops(steps)):
        z = solver.step(mixture_velocity, z, t, t_next)
    noise = z
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    for t, t_next in pairwise(stops(steps).flip(0)):
        z = solver.step(mixture_velocity, z, t, t_next)
    worst = (z - data).abs().max().item()
    assert worst < error
