"""The integration from noise to data, on fields whose flow is known in closed form."""

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.flow import per_sample, shift_time
from rfdit.randomness import SampleGenerator
from rfdit.sampler import RK4, Euler, Heun, Midpoint, NoGuidance, Sampler, Solver
from tests.support.models.fields import MEAN, STD, GaussianBackbone, means


def point_field(z: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """E[z1 - z0 | z_t] for data that is one point, MEAN: all paths are straight."""
    return (z - MEAN) / per_sample(t, z)


class Recorder:
    """A field of zeros that records the time and batch of each evaluation."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert t.shape == (len(z),)
        assert (t == t[0]).all()
        self.times.append(t[0].item())
        return torch.zeros_like(z)


def noise(n: int, *shape: int) -> Tensor:
    return SampleGenerator(seed=0, keys=torch.arange(n)).normal(*shape)


def sampler(solver: Solver, steps: int, shift: float = 1.0) -> Sampler:
    return Sampler(solver=solver, guidance=NoGuidance(), steps=steps, shift=shift)


def nothing(n: int) -> Condition:
    return Condition(pooled=torch.zeros(n, 1))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("solver", "steps", "tolerance"),
    [(Euler(), 400, 0.02), (Heun(), 50, 0.005), (Midpoint(), 50, 0.005), (RK4(), 20, 0.005)],
)
def test_a_gaussian_is_reproduced(solver: Solver, steps: int, tolerance: float, shift: float) -> None:
    z1 = noise(512, 2, 4, 4)
    z0 = sampler(solver, steps, shift)(GaussianBackbone(), z1, means(512, MEAN), nothing(512))
    assert z0.mean().item() == pytest.approx(MEAN, abs=tolerance)
    assert z0.std().item() == pytest.approx(STD, rel=2 * tolerance)
    torch.testing.assert_close(z0, MEAN + STD * z1, atol=3 * tolerance, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_is_exact_on_straight_paths(steps: int) -> None:
    z0 = sampler(Euler(), steps)(point_field, noise(4, 1, 2, 2), nothing(4), nothing(4))
    torch.testing.assert_close(z0, torch.full_like(z0, MEAN))


@pytest.mark.parametrize("steps", [1, 2, 25])
def test_n_steps_are_n_steps(steps: int) -> None:
    for solver, each in ((Euler(), 1), (Heun(), 2), (Midpoint(), 2), (RK4(), 4)):
        evaluations = each * steps
        one, field, done = sampler(solver, steps), Recorder(), []
        one(field, noise(2, 1, 2, 2), nothing(2), nothing(2), on_step=lambda i, z, done=done: done.append(i))
        assert done == list(range(1, steps + 1))
        assert len(field.times) == evaluations
        assert one.evaluations == evaluations
        one(field, noise(2, 1, 2, 2), nothing(2), nothing(2))
        assert one.evaluations == evaluations  # of the last call alone


def test_euler_evaluates_at_the_beginning_of_each_step() -> None:
    field = Recorder()
    sampler(Euler(), 4)(field, noise(1, 1, 2, 2), nothing(1), nothing(1))
    assert field.times == [1.0, 0.75, 0.5, 0.25]


def test_heun_evaluates_at_both_ends() -> None:
    field = Recorder()
    sampler(Heun(), 2)(field, noise(1, 1, 2, 2), nothing(1), nothing(1))
    assert field.times == [1.0, 0.5, 0.5, 0.0]


def test_midpoint_and_rk4_evaluate_halfway() -> None:
    for solver, times in ((Midpoint(), [1.0, 0.75]), (RK4(), [1.0, 0.75, 0.75, 0.5])):
        field = Recorder()
        sampler(solver, 2)(field, noise(1, 1, 2, 2), nothing(1), nothing(1))
        assert field.times[: len(times)] == times


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_times_run_from_exactly_one_to_exactly_zero(steps: int, shift: float) -> None:
    times = sampler(Euler(), steps, shift).times(torch.device("cpu"))
    assert times.shape == (steps + 1,)
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    expected = shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    torch.testing.assert_close(times, expected.float())


def test_on_step_sees_the_latents_on_their_way() -> None:
    seen: list[Tensor] = []
    z1 = noise(2, 1, 2, 2)
    z0 = sampler(Euler(), 3)(
        point_field, z1, nothing(2), nothing(2), on_step=lambda i, z: seen.append(z.clone())
    )
    torch.testing.assert_close(seen[0], z1 + (MEAN - z1) / 3)
    assert torch.equal(seen[-1], z0)


def test_integration_is_float32_without_gradients() -> None:
    weight = torch.ones((), requires_grad=True)

    def half(z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return (weight * z).bfloat16()

    z0 = sampler(Heun(), 2)(half, noise(2, 1, 2, 2), nothing(2), nothing(2))
    assert z0.dtype == torch.float32
    assert not z0.requires_grad


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sampler\.steps=0 must be at least 1"):
        sampler(Euler(), 0)


def test_it_starts_where_it_is_told() -> None:
    """All steps between `start` and data: a noised sample of the point comes back to it."""
    z, field = noise(3, 1, 2, 2), Recorder()
    start = MEAN + 0.6 * (z - MEAN)
    z0 = sampler(Euler(), 3)(point_field, start, nothing(3), nothing(3), start=0.6)
    torch.testing.assert_close(z0, torch.full_like(z0, MEAN))
    sampler(Heun(), 2)(field, z, nothing(3), nothing(3), start=0.5)
    assert field.times == [0.5, 0.25, 0.25, 0.0]
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"start={wrong} must be above 0 and at most 1"):
            sampler(Euler(), 2)(field, z, nothing(3), nothing(3), start=wrong)
