"""The convention: the two ends of the path, and the direction of time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rfdit import flow

times = st.floats(0, 1, width=32)
shifts = st.floats(0.1, 20)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and noise, in float64 so that identities hold to rounding."""
    generator = torch.Generator().manual_seed(1)
    z0, z1 = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
    return z0, z1


def test_the_path_starts_at_data_and_ends_at_noise() -> None:
    z0, z1 = pair()
    assert torch.equal(flow.interpolate(z0, z1, torch.zeros(3).double()), z0)
    torch.testing.assert_close(flow.interpolate(z0, z1, torch.ones(3).double()), z1)


def test_each_sample_has_its_own_time() -> None:
    z0, z1 = pair()
    z_t = flow.interpolate(z0, z1, torch.tensor([0.0, 0.25, 0.5]).double())
    torch.testing.assert_close(z_t[0], z0[0])
    torch.testing.assert_close(z_t[1], 0.75 * z0[1] + 0.25 * z1[1])
    torch.testing.assert_close(z_t[2], (z0[2] + z1[2]) / 2)


@given(t=times)
def test_velocity_is_the_paths_derivative(t: float) -> None:
    z0, z1 = pair()
    here, there = (flow.interpolate(z0, z1, torch.full((3,), x).double()) for x in (t, t + 0.5))
    torch.testing.assert_close((there - here) / 0.5, flow.velocity(z0, z1))


@given(t=times)
def test_velocity_gives_back_both_ends(t: float) -> None:
    z0, z1 = pair()
    at = torch.full((3,), t).double()
    z_t, v = flow.interpolate(z0, z1, at), flow.velocity(z0, z1)
    torch.testing.assert_close(flow.data_from_velocity(z_t, v, at), z0)
    torch.testing.assert_close(flow.noise_from_velocity(z_t, v, at), z1)


@given(t=times)
def test_shift_one_is_the_identity(t: float) -> None:
    assert flow.shift_time(torch.tensor(t), 1.0).item() == pytest.approx(t, abs=1e-7)


@given(shift=shifts)
def test_shift_keeps_the_ends_and_the_order(shift: float) -> None:
    t = flow.shift_time(torch.linspace(0, 1, 101, dtype=torch.float64), shift)
    assert t[0] == 0
    assert t[-1] == pytest.approx(1)
    assert (t.diff() > 0).all()


@given(t=times, first=shifts, second=shifts)
def test_shifts_compose_by_multiplication(t: float, first: float, second: float) -> None:
    at = torch.tensor(t, dtype=torch.float64)
    twice = flow.shift_time(flow.shift_time(at, first), second)
    torch.testing.assert_close(twice, flow.shift_time(at, first * second))


def test_shift_above_one_moves_towards_noise() -> None:
    half = torch.tensor(0.5)
    assert flow.shift_time(half, 3.0).item() == pytest.approx(0.75)
    assert flow.shift_time(half, 1 / 3).item() == pytest.approx(0.25)
