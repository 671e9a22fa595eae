"""Steps by mean velocities: those of the flow itself, in any number, and by nothing else."""

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.sampler import ClassifierFree, Euler, FlowMap, GuidanceInterval, Heun, NoGuidance, Sampler
from rfdit.sampler.fields import Observed
from rfdit.sampler.guidance import Guidance, with_scale
from tests.support.models.fields import GaussianBackbone, GaussianMeanBackbone, means

NOISE = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def sampler(steps: int, guidance: Guidance | None = None) -> Sampler:
    return Sampler(solver=FlowMap(), guidance=guidance or NoGuidance(), steps=steps)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_any_number_of_steps_is_the_flow(steps: int) -> None:
    """Data N(0.7, 0.4^2): noise z1 goes to 0.7 + 0.4 z1, and from t = 1/2 on by the ratio of standard deviations."""
    one, cond = sampler(steps), means(4, 0.7)
    z0 = one(GaussianMeanBackbone(0.4), NOISE, cond, means(4, 0.0))
    torch.testing.assert_close(z0, 0.7 + 0.4 * NOISE)
    assert one.evaluations == steps
    middle = 0.35 + (0.25 * 0.4**2 + 0.25) ** 0.5 * NOISE
    z0 = one(GaussianMeanBackbone(0.4), middle, cond, means(4, 0.0), start=0.5)
    torch.testing.assert_close(z0, 0.7 + 0.4 * NOISE)


def test_one_step_by_the_velocity_is_not() -> None:
    """Euler's step goes to the mean of the data."""
    z0 = Sampler(solver=Euler(), guidance=NoGuidance(), steps=1)(
        GaussianBackbone(0.4), NOISE, means(4, 0.7), means(4, 0.0)
    )
    torch.testing.assert_close(z0, torch.full_like(z0, 0.7))


def test_guidance_on_top_is_refused() -> None:
    for guidance in (
        ClassifierFree(scale=3.0),
        GuidanceInterval(inside=ClassifierFree(scale=2.0), low=0.1, high=0.9),
        Observed(guidance=ClassifierFree(scale=2.0), watch=lambda z, v, t: None),
    ):
        with pytest.raises(ValueError, match="are guided in training; use guidance=none"):
            sampler(1, guidance)
    seen: list[Tensor] = []
    watched = Observed(guidance=ClassifierFree(scale=1.0), watch=lambda z, v, t: seen.append(v))
    one = sampler(2, watched)
    one(GaussianMeanBackbone(0.4), NOISE, means(4, 0.7), means(4, 0.0))
    assert len(seen) == 2
    one.guidance = with_scale(ClassifierFree(scale=1.0), 2.0)
    with pytest.raises(ValueError, match="are guided in training"):
        one(GaussianMeanBackbone(0.4), NOISE, means(4, 0.7), means(4, 0.0))


def test_networks_and_solvers_that_do_not_fit_are_refused() -> None:
    cond = means(4, 0.7)
    with pytest.raises(ValueError, match=r"sampler\.solver=FlowMap needs a model of mean velocities"):
        sampler(1)(GaussianBackbone(0.4), NOISE, cond, cond)
    heun = Sampler(solver=Heun(), guidance=NoGuidance(), steps=2)
    with pytest.raises(ValueError, match=r"sampler\.solver=Heun asks for velocities at single times"):
        heun(GaussianMeanBackbone(0.4), NOISE, cond, cond)
    solver, _ = FlowMap().reading(GaussianMeanBackbone(0.4))
    with pytest.raises(ValueError, match="goes from noise to data alone"):
        solver.step(lambda z, t: z, NOISE, torch.tensor(0.2), torch.tensor(0.4))


def test_the_duration_is_in_the_condition_of_every_evaluation() -> None:
    seen: list[Condition] = []

    class Network:
        durations = True

        def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
            seen.append(cond)
            return torch.zeros_like(z_t)

    sampler(4)(Network(), NOISE, means(4, 0.7), means(4, 0.0))
    for cond in seen:
        assert cond.duration is not None
        torch.testing.assert_close(cond.duration, torch.full((4,), 0.25))
