"""Orders of convergence, by the slope of log error over log steps."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from rfdit.sampler import Euler, Heun, Solver

START = torch.tensor([[[[0.4, -0.7, 0.2]]]], dtype=torch.float64)


def nonlinear(z: Tensor, t: Tensor) -> Tensor:
    """dz/dt = -2 t z^2, nonlinear in z and depending on t."""
    return -2 * t * z**2


def exact(z1: Tensor) -> Tensor:
    """z(0) of the field above: 1 / z(t) = 1 / z(1) + t^2 - 1."""
    return 1 / (1 / z1 - 1)


def integrate(solver: Solver, steps: int) -> Tensor:
    z = START
    for t, t_next in pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64)):
        z = solver.step(nonlinear, z, t, t_next)
    return z


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
def test_order(solver: Solver, order: int) -> None:
    steps = [16, 32, 64, 128]
    errors = [(integrate(solver, n) - exact(START)).abs().max().item() for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.15)


def test_time_runs_down() -> None:
    """A step of size dt > 0 subtracts dt v."""
    z, v = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    for solver in (Euler(), Heun()):
        stepped = solver.step(lambda z, t: v, z, torch.tensor(1.0), torch.tensor(0.75))
        torch.testing.assert_close(stepped, torch.full((1, 1, 1, 1), -0.5))


def test_heun_is_exact_where_the_slope_is_linear_in_time() -> None:
    """The trapezium rule integrates v = 2 t exactly: z(0) = z(1) - 1."""
    z = Heun().step(
        lambda z, t: 2 * t * torch.ones_like(z), torch.ones(1, 1, 1, 1), torch.tensor(1.0), torch.tensor(0.0)
    )
    torch.testing.assert_close(z, torch.zeros(1, 1, 1, 1))
