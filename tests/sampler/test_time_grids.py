"""Time grids: N + 1 points from exactly 1 to exactly 0, by the formula each one states."""

import math

import pytest
import torch

from rfdit.flow import shift_time
from rfdit.sampler import (
    CosineGrid,
    CustomGrid,
    Euler,
    LastStepGrid,
    NoGuidance,
    ResolutionGrid,
    Sampler,
    TimeGrid,
    UniformGrid,
)
from tests.support.models.fields import GaussianBackbone, means

GRIDS = [UniformGrid(), ResolutionGrid(base_size=16), CosineGrid(), LastStepGrid(size=0.01)]


def times(grid: TimeGrid, steps: int, size: tuple[int, int] = (32, 48), shift: float = 1.0) -> torch.Tensor:
    sampler = Sampler(solver=Euler(), guidance=NoGuidance(), steps=steps, grid=grid, shift=shift)
    return sampler.times(torch.device("cpu"), size)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: type(grid).__name__)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_n_steps_run_from_exactly_one_to_exactly_zero(grid: TimeGrid, steps: int, shift: float) -> None:
    t = times(grid, steps, shift=shift)
    assert t.shape == (steps + 1,)
    assert t.dtype == torch.float32
    assert t[0] == 1
    assert t[-1] == 0
    assert (t.diff() < 0).all()


def test_the_resolution_sets_the_shift() -> None:
    """Four times as many places as the base has: shift 2; as many, in another shape: none."""
    grid, uniform = ResolutionGrid(base_size=32), times(UniformGrid(), 10)
    torch.testing.assert_close(times(grid, 10, (64, 64)), shift_time(uniform, 2.0))
    torch.testing.assert_close(times(grid, 10, (16, 64)), uniform)
    torch.testing.assert_close(times(grid, 10, (16, 16)), shift_time(uniform, 0.5))
    # sampler.shift comes on top; shifts multiply.
    torch.testing.assert_close(times(grid, 10, (64, 64), shift=1.5), shift_time(uniform, 3.0))


def test_the_resolution_is_that_of_the_noise() -> None:
    """The sampler's first step ends where the grid of its latents' size says."""
    seen: list[float] = []

    def backbone(z: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        seen.append(t[0].item())
        return torch.zeros_like(z)

    sampler = Sampler(solver=Euler(), guidance=NoGuidance(), steps=2, grid=ResolutionGrid(base_size=2))
    sampler(backbone, torch.zeros(1, 1, 4, 4), means(1, 0.0), means(1, 0.0))
    assert seen == pytest.approx([1, 2 / 3])


def test_without_a_size_the_resolution_is_asked_for() -> None:
    sampler = Sampler(solver=Euler(), guidance=NoGuidance(), steps=2, grid=ResolutionGrid(base_size=2))
    with pytest.raises(ValueError, match="depend on latent_size"):
        sampler.times(torch.device("cpu"))


def test_cosine_has_the_schedules_noise_levels() -> None:
    """Noise to data is tan(pi u / 2) to one there, and t / (1 - t) here."""
    t, u = times(CosineGrid(), 8), torch.linspace(1, 0, 9)[1:]
    torch.testing.assert_close(t[1:] / (1 - t[1:]), torch.tan(math.pi / 2 * u), atol=1e-6, rtol=1e-5)


def test_the_last_step_has_its_size() -> None:
    t = times(LastStepGrid(size=0.04), 25)
    torch.testing.assert_close(t[-2], torch.tensor(0.04))
    torch.testing.assert_close(t[:-1].diff(), torch.full((24,), -0.04))
    assert times(LastStepGrid(size=0.1), 4).tolist() == pytest.approx([1, 0.7, 0.4, 0.1, 0])


def test_custom_times_are_taken_as_they_are() -> None:
    assert times(CustomGrid(times=[1, 0.9, 0.5, 0]), 3).tolist() == pytest.approx([1, 0.9, 0.5, 0])
    sampler = Sampler(solver=Euler(), guidance=NoGuidance(), steps=3, grid=CustomGrid(times=[1, 0.9, 0.5, 0]))
    sampler(GaussianBackbone(), torch.zeros(1, 1, 2, 2), means(1, 0.0), means(1, 0.0))
    assert sampler.evaluations == 3


def test_custom_times_need_their_number_of_steps() -> None:
    with pytest.raises(ValueError, match=r"sampler\.steps=25 does not fit .* which make 3 steps"):
        times(CustomGrid(times=[1, 0.9, 0.5, 0]), 25)


@pytest.mark.parametrize("given", [[], [1], [1, 0.5], [0.9, 0], [1, 0.5, 0.5, 0], [1, 0.2, 0.5, 0], [0, 1]])
def test_custom_times_that_do_not_go_down_are_refused(given: list[float]) -> None:
    with pytest.raises(ValueError, match="must go down from 1 to 0"):
        CustomGrid(times=given)


def test_sizes_and_shifts_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sampler\.grid\.size=1\.0 must lie between 0 and 1"):
        LastStepGrid(size=1.0)
    with pytest.raises(ValueError, match=r"sampler\.grid\.base_size=0 must be at least 1"):
        ResolutionGrid(base_size=0)
    with pytest.raises(ValueError, match=r"sampler\.shift=0\.0 must be positive"):
        Sampler(solver=Euler(), guidance=NoGuidance(), steps=1, shift=0.0)
