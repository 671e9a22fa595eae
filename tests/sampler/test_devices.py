"""The sampler's times are scalars on the CPU; everything else is where the noise is."""

import pytest
import torch

from rfdit.randomness import SampleGenerator
from rfdit.sampler import (
    RK4,
    AdaptiveProjected,
    Autoguidance,
    CFGRescale,
    CFGZeroStar,
    ClassifierFree,
    Euler,
    EulerMaruyama,
    Guidance,
    GuidanceInterval,
    Heun,
    Midpoint,
    NoGuidance,
    Sampler,
    SigmaDiffusion,
    Solver,
    StochasticSolver,
    ThreeChannel,
)
from tests.support.models.fields import GaussianBackbone, means

META = torch.device("meta")  # computes nothing, and refuses tensors of other devices as a GPU does
GUIDANCES = [
    NoGuidance(),
    ClassifierFree(scale=3.0),
    ThreeChannel(scale=3.0),
    CFGRescale(scale=3.0),
    AdaptiveProjected(scale=3.0, momentum=-0.5, norm_threshold=1.0),
    CFGZeroStar(scale=3.0),
    GuidanceInterval(inside=ClassifierFree(scale=2.0), low=0.2, high=0.7),
    Autoguidance(scale=2.0, guide=GaussianBackbone()),
]
SOLVERS = [Euler(), Heun(), Midpoint(), RK4(), EulerMaruyama(diffusion=SigmaDiffusion())]


def test_the_device_of_these_tests_refuses_others() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(3) * torch.ones(3, device=META)


@pytest.mark.parametrize("guidance", GUIDANCES, ids=lambda guidance: type(guidance).__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_latents_stay_on_their_device(solver: Solver | StochasticSolver, guidance: Guidance) -> None:
    cond = means(2, 0.0).map(lambda x: x.to(META))
    keys = torch.zeros(2, dtype=torch.int64, device=META)
    sampler = Sampler(solver=solver, guidance=guidance, steps=3)
    z0 = sampler(
        GaussianBackbone(),
        torch.zeros(2, 4, 4, 4, device=META),
        cond,
        cond,
        generator=SampleGenerator(seed=0, keys=keys),
    )
    assert z0.device == META
