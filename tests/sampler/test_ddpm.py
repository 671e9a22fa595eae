"""Ancestral sampling is the process of the papers' equations, over DiT's whole trajectory too.

The reference is written from Ho et al. (arXiv 2006.11239), Nichol and Dhariwal (arXiv 2102.09672, eq. 9, 10, 15 and
sec. 4) and DiT's paper: a process of 250 steps with betas of its own, in DDPM's coordinates and float32.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.conditioning import LabelConditioner
from rfdit.interchange.published.layout import LAYOUTS, from_published
from rfdit.model import DiT, NoisePrediction, VPSchedule
from rfdit.network import Network
from rfdit.protocols import Backbone
from rfdit.randomness import SampleGenerator
from rfdit.sampler import (
    DDPM,
    AdaptiveProjected,
    CFGZeroStar,
    ClassifierFree,
    Guidance,
    GuidanceInterval,
    NoGuidance,
    RespacedGrid,
    Sampler,
    ThreeChannel,
)
from tests.support.models.fields import MEAN, STD, GaussianBackbone, means
from tests.support.models.originals import (
    CHANNELS,
    CLASSES,
    HEADS,
    PATCH,
    SIDE,
    State,
    difference,
    published,
    reference,
)

ABAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
STEPS, N, SCALE = 250, 2, 4.0
LATENT = (CHANNELS, SIDE * PATCH, SIDE * PATCH)
LABELS = torch.tensor([0, 5])


def spaced(n: int) -> list[int]:
    """n of 1,000 timesteps: a stride that is no whole number, rounded."""
    position, stride, found = 0.0, 999 / (n - 1), []
    for _ in range(n):
        found.append(round(position))
        position += stride
    return found


def published_trajectory(state: State, noises: list[Tensor], *, guided: int | None) -> Tensor:
    """x_0 of DDPM's ancestral sampling; noises: x_T, then one for each step.

    guided: the number of channels that classifier-free guidance acts on; None for no guidance.
    """
    timesteps = spaced(STEPS)
    abar = ABAR[timesteps]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    beta = 1 - abar / previous
    posterior = beta * (1 - previous) / (1 - abar)
    x = noises[0]
    for i in reversed(range(STEPS)):
        k = torch.full((N,), float(timesteps[i]))
        output = reference(state, x, k, LABELS)
        epsilon, share = output[:, :CHANNELS], (output[:, CHANNELS:] + 1) / 2
        if guided is not None:
            null = reference(state, x, k, torch.full((N,), CLASSES))[:, :CHANNELS]
            epsilon = torch.cat(
                [null[:, :guided] + SCALE * (epsilon[:, :guided] - null[:, :guided]), epsilon[:, guided:]], 1
            )
        x0 = (1 / abar[i]).sqrt().float() * x - (1 / abar[i] - 1).sqrt().float() * epsilon
        mean = (beta[i] * previous[i].sqrt() / (1 - abar[i])).float() * x0
        mean = mean + ((1 - previous[i]) * (1 - beta[i]).sqrt() / (1 - abar[i])).float() * x
        if i == 0:
            return mean
        log_variance = share * beta[i].log().float() + (1 - share) * posterior[i].log().float()
        x = mean + (0.5 * log_variance).exp() * noises[STEPS - i]
    raise AssertionError


def converted(state: State) -> Network:
    ours, settings = from_published(state, LAYOUTS["dit"], HEADS)
    backbone = NoisePrediction(schedule=VPSchedule(), learned_variance=True)(DiT(**settings))
    network = Network(
        backbone=backbone, conditioner=LabelConditioner(num_classes=CLASSES, width=settings["width"])
    )
    network.load_state_dict(ours)
    return network


def sampler(guidance: Guidance, steps: int = STEPS, **settings: str) -> Sampler:
    schedule = VPSchedule()
    return Sampler(
        solver=DDPM(schedule=schedule, **settings),
        guidance=guidance,
        steps=steps,
        grid=RespacedGrid(schedule=schedule),
    )


def conditions(network: Network) -> tuple[Condition, Condition]:
    table = network.conditioner.table.weight.detach()  # type: ignore[union-attr]
    return Condition(pooled=table[LABELS]), Condition(pooled=table[-1:].expand(N, -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guidance", "guided"),
    [(NoGuidance(), None), (ThreeChannel(scale=SCALE), 3), (ClassifierFree(scale=SCALE), CHANNELS)],
    ids=["none", "three channels", "all channels"],
)
def test_a_trajectory_of_dit_is_the_papers(guidance: Guidance, guided: int | None) -> None:
    state = published("dit", sigma=True)
    network, generator = converted(state), SampleGenerator(seed=0, keys=torch.arange(N))
    start = generator.fork("image").normal(*LATENT)
    noises = [start, *(generator.fork(f"step {i}").normal(*LATENT) for i in range(STEPS - 1))]
    expected = published_trajectory(state, noises, guided=guided)
    one = sampler(guidance)
    found = one(network.backbone, start, *conditions(network), generator=generator)
    assert one.evaluations == STEPS
    assert difference(found, expected) <= 1e-4
    print(f"largest relative difference {difference(found, expected):.1e}")


def test_the_learned_variance_matters() -> None:
    state = published("dit", sigma=True)
    network, generator = converted(state), SampleGenerator(seed=0, keys=torch.arange(N))
    start, both = generator.fork("image").normal(*LATENT), conditions(network)
    found = [
        sampler(NoGuidance(), 10, variance=kind)(network.backbone, start, *both, generator=generator)
        for kind in ("learned", "small", "large")
    ]
    assert difference(found[0], found[1]) > 1e-2
    assert difference(found[0], found[2]) > 1e-2


@pytest.mark.parametrize(
    "guidance",
    [
        ClassifierFree(scale=2.0, batched=False),
        GuidanceInterval(inside=ClassifierFree(scale=2.0), low=0.0, high=0.5),
        AdaptiveProjected(scale=2.0),
        CFGZeroStar(scale=2.0, zero_init=0.0),
    ],
    ids=lambda guidance: type(guidance).__name__,
)
def test_the_variance_is_the_conditions_under_every_guidance(guidance: Guidance) -> None:
    """In a network whose variances tell the condition, none is the null condition's."""
    heard: list[Tensor] = []

    class Telling:
        prediction = NoisePrediction(schedule=VPSchedule(), learned_variance=True)

        def __call__(
            self, z_t: Tensor, t: Tensor, cond: Condition, *, with_variance: bool = False
        ) -> tuple[Tensor, Tensor]:
            return 0.1 * z_t, cond.pooled[:, :1, None, None].expand_as(z_t)

    class Listening(DDPM):
        def _evaluate(self, *arguments: object) -> tuple[Tensor | None, Tensor]:
            said, v = super()._evaluate(*arguments)  # type: ignore[arg-type]
            assert said is not None
            heard.append(said)
            return said, v

    schedule = VPSchedule()
    one = Sampler(
        solver=Listening(schedule=schedule), guidance=guidance, steps=4, grid=RespacedGrid(schedule=schedule)
    )
    start = torch.randn(3, 1, 2, 2)
    generator = SampleGenerator(seed=0, keys=torch.arange(3))
    one(Telling(), start, means(3, 0.5), means(3, -0.5), generator=generator)
    assert len(heard) == 4
    assert all(torch.equal(each, torch.full_like(start, 0.5)) for each in heard)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["small", "large"])
def test_every_velocity_network_can_be_sampled(variance: str) -> None:
    """Over all timesteps a Gaussian comes out as it is."""
    generator = SampleGenerator(seed=0, keys=torch.arange(256))
    start = generator.fork("image").normal(2, 4, 4)
    one = sampler(NoGuidance(), 1000, variance=variance)
    found = one(GaussianBackbone(), start, means(256, MEAN), means(256, 0.0), generator=generator)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert found.std().item() == pytest.approx(STD, rel=0.05)


def test_timesteps_are_those_of_the_original() -> None:
    schedule = VPSchedule()
    for n in (2, 50, 250, 1000):
        times = RespacedGrid(schedule=schedule)(n, None)
        assert (times[0], times[-1], len(times)) == (1.0, 0.0, n + 1)
        assert schedule.timestep(times[:-1].float()).tolist() == spaced(n)[::-1]


Change = Callable[[Backbone], object]


@pytest.mark.parametrize(
    ("network", "guidance", "sentence"),
    [
        (GaussianBackbone(), NoGuidance(), r"variance=learned needs a model of prediction=noise"),
        (None, CFGZeroStar(scale=2.0), r"needs an evaluation of the network in every step, and guidance has"),
        (
            VPSchedule(beta_end=0.03),
            NoGuidance(),
            r"is not that of the model, 1000 betas from 0\.0001 to 0\.03",
        ),
    ],
    ids=["velocity", "a pause", "schedule"],
)
def test_what_does_not_fit_is_said(network: object, guidance: Guidance, sentence: str) -> None:
    made = converted(published("dit", sigma=True))
    if isinstance(network, VPSchedule):
        made.backbone.prediction.schedule = network  # type: ignore[attr-defined]
    backbone = network if isinstance(network, GaussianBackbone) else made.backbone
    generator = SampleGenerator(seed=0, keys=torch.arange(N))
    with pytest.raises(ValueError, match=sentence):
        sampler(guidance, 4)(backbone, torch.randn(N, *LATENT), *conditions(made), generator=generator)


@pytest.mark.parametrize("steps", [1, 1001])
def test_the_number_of_steps_is_that_of_timesteps(steps: int) -> None:
    with pytest.raises(ValueError, match=f"sampler.steps={steps} must be from 2 to the schedule's 1000"):
        RespacedGrid(schedule=VPSchedule())(steps, None)
