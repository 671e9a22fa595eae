"""Guidance tested by its formula, by the resulting mean where that is known, and by its cost."""

import math

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.randomness import SampleGenerator
from rfdit.sampler import (
    Autoguidance,
    ClassifierFree,
    EmbeddedGuidance,
    Euler,
    Guidance,
    GuidanceInterval,
    Heun,
    NoGuidance,
    Sampler,
    ThreeChannel,
)
from rfdit.sampler.guidance import with_scale
from tests.support.models.fields import STD, GaussianBackbone, means

Z = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(1))
COND, NULL = Condition(pooled=torch.ones(3, 1)), Condition(pooled=torch.zeros(3, 1))
T = torch.tensor(0.5)


class Backbone:
    """A velocity that depends on everything; records the batch of each evaluation."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.batches.append(len(z_t))
        c = cond.pooled[:, :, None, None]
        return z_t * t[:, None, None, None] + c * z_t.cos() + (1 - c) * z_t.sin()


CONDITIONAL, UNCONDITIONAL = Z * 0.5 + Z.cos(), Z * 0.5 + Z.sin()


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0])
def test_the_formula_holds_on_every_channel(scale: float) -> None:
    v = ClassifierFree(scale=scale)(Backbone(), COND, NULL)(Z, T)
    torch.testing.assert_close(v, UNCONDITIONAL + scale * (CONDITIONAL - UNCONDITIONAL))


def test_scale_zero_is_unconditional_and_one_is_conditional() -> None:
    torch.testing.assert_close(ClassifierFree(scale=0.0)(Backbone(), COND, NULL)(Z, T), UNCONDITIONAL)
    torch.testing.assert_close(ClassifierFree(scale=1.0)(Backbone(), COND, NULL)(Z, T), CONDITIONAL)


@pytest.mark.parametrize(
    ("guidance", "batch"), [(NoGuidance(), 3), (ClassifierFree(scale=1.0), 3), (ClassifierFree(scale=2.0), 6)]
)
def test_scale_one_costs_half_of_what_guidance_costs(guidance: Guidance, batch: int) -> None:
    backbone = Backbone()
    sampler = Sampler(solver=Euler(), guidance=guidance, steps=4)
    sampler(backbone, Z, COND, NULL)
    assert backbone.batches == [batch] * 4
    assert sampler.evaluations == 4


def test_captions_travel_with_their_masks() -> None:
    """Both halves of the guided batch see their own tokens and mask."""
    seen: list[Condition] = []

    def backbone(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        seen.append(cond)
        return z_t

    cond = Condition(torch.ones(3, 1), torch.ones(3, 2, 4), torch.ones(3, 2).bool())
    null = Condition(torch.zeros(3, 1), torch.zeros(3, 2, 4), torch.tensor([[True, False]] * 3))
    ClassifierFree(scale=2.0)(backbone, cond, null)(Z, T)
    (both,) = seen
    assert both.tokens is not None
    assert both.mask is not None
    assert both.tokens[:3].eq(1).all()
    assert both.tokens[3:].eq(0).all()
    assert both.mask[:3].all()
    assert not both.mask[3:, 1].any()


@pytest.mark.parametrize("guidance", [ClassifierFree, ThreeChannel])
def test_a_negative_scale_is_refused(guidance: type) -> None:
    with pytest.raises(ValueError, match=r"guidance\.scale=-1\.0 must be at least 0 and finite"):
        guidance(scale=-1.0)


def test_two_evaluations_give_what_one_of_twice_the_batch_gives() -> None:
    backbones = Backbone(), Backbone()
    batched = ClassifierFree(scale=2.0)(backbones[0], COND, NULL)(Z, T)
    apart = ClassifierFree(scale=2.0, batched=False)(backbones[1], COND, NULL)(Z, T)
    torch.testing.assert_close(batched, apart)
    assert [backbone.batches for backbone in backbones] == [[6], [3, 3]]


def final_mean(guidance: Guidance, steps: int = 100) -> tuple[float, float]:
    """Mean and deviation of what is sampled between data N(2, 0.3^2) and, without the condition, N(0.5, 0.3^2)."""
    noise = SampleGenerator(seed=0, keys=torch.arange(256)).normal(1, 4, 4)
    noise = (noise - noise.mean()) / noise.std()
    sampler = Sampler(solver=Heun(), guidance=guidance, steps=steps)
    z0 = sampler(GaussianBackbone(), noise, means(256, 2.0), means(256, 0.5))
    return z0.mean().item(), z0.std().item()


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_guided_mean_of_two_gaussians(scale: float) -> None:
    """u + scale (c - u) holds for the fields, hence here, where spreads are equal, for the means."""
    mean, std = final_mean(ClassifierFree(scale=scale))
    assert mean == pytest.approx(0.5 + scale * (2.0 - 0.5), abs=0.01)
    assert std == pytest.approx(STD, abs=0.005)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.2, 0.6), (0.0, 0.7), (0.6, 1.0)])
def test_the_guided_mean_within_an_interval(low: float, high: float) -> None:
    """z = (1 - t) m + s_t x with a constant x; where m jumps, x does, by (1 - t) / s_t times as much."""

    def weight(t: float) -> float:
        return (1 - t) / math.sqrt((1 - t) ** 2 * STD**2 + t**2)

    guided = 0.5 + 3.0 * (2.0 - 0.5)
    expected = 2.0 + STD * (guided - 2.0) * (weight(low) - weight(high))
    interval = GuidanceInterval(inside=ClassifierFree(scale=3.0), low=low, high=high)
    # Steps that straddle an edge are half guided: many of them.
    assert final_mean(interval, steps=400)[0] == pytest.approx(expected, abs=0.03)


def test_outside_its_interval_guidance_costs_nothing() -> None:
    backbone = Backbone()
    interval = GuidanceInterval(inside=ClassifierFree(scale=3.0), low=0.3, high=0.7)
    Sampler(solver=Euler(), guidance=interval, steps=10)(backbone, Z, COND, NULL)
    assert backbone.batches == [3, 3, 3, 6, 6, 6, 6, 6, 3, 3]  # at 1, 0.9, ..., 0.1; both edges are inside


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.7, 0.3), (-0.1, 0.5), (0.5, 1.1)])
def test_no_interval_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must be an interval within 0 and 1"):
        GuidanceInterval(inside=NoGuidance(), low=low, high=high)


def test_autoguidance_moves_away_from_the_weak_network() -> None:
    """Each network under its own condition; the formula; and the mean that follows from it."""
    guide = GaussianBackbone(std=0.5)
    strong = GaussianBackbone()(Z, T.expand(3), means(3, 2.0))
    weak = GaussianBackbone(std=0.5)(Z, T.expand(3), means(3, 1.0))
    v = Autoguidance(scale=3.0, guide=guide)(GaussianBackbone(), means(3, 2.0), means(3, 1.0))(Z, T)
    torch.testing.assert_close(v, weak + 3 * (strong - weak))
    assert guide.batches == [3]
    alone = Autoguidance(scale=1.0, guide=guide)(GaussianBackbone(), means(3, 2.0), means(3, 1.0))(Z, T)
    assert torch.equal(alone, strong)
    assert guide.batches == [3]
    mean, _ = final_mean(Autoguidance(scale=3.0, guide=GaussianBackbone()))
    assert mean == pytest.approx(0.5 + 3 * 1.5, abs=0.01)


def test_the_legacy_form_guides_three_channels() -> None:
    for batched in (True, False):
        v = ThreeChannel(scale=4.0, batched=batched)(Backbone(), COND, NULL)(Z, T)
        torch.testing.assert_close(v[:, :3], (UNCONDITIONAL + 4 * (CONDITIONAL - UNCONDITIONAL))[:, :3])
        torch.testing.assert_close(v[:, 3:], CONDITIONAL[:, 3:])


class Told(Backbone):
    """A network that takes the scale of guidance, and returns it."""

    def __init__(self, guidance: float | None = 3.0) -> None:
        super().__init__()
        self.guidance = guidance

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        own = torch.full((len(z_t),), self.guidance or 0.0)
        scale = own if cond.guidance is None else cond.guidance
        return super().__call__(z_t, t, cond) + scale[:, None, None, None]


def test_a_network_is_told_the_scale() -> None:
    backbone = Told()
    v = EmbeddedGuidance(scale=5.0)(backbone, COND, NULL)(Z, T)
    torch.testing.assert_close(v, CONDITIONAL + 5)
    assert backbone.batches == [3]
    torch.testing.assert_close(NoGuidance()(backbone, COND, NULL)(Z, T), CONDITIONAL + 3)  # its own
    again = with_scale(EmbeddedGuidance(scale=5.0), 2.0)
    torch.testing.assert_close(again(backbone, COND, NULL)(Z, T), CONDITIONAL + 2)
    within = GuidanceInterval(inside=EmbeddedGuidance(scale=5.0), low=0.6, high=1.0)(backbone, COND, NULL)
    torch.testing.assert_close(within(Z, T), CONDITIONAL + 1)
    torch.testing.assert_close(within(Z, torch.tensor(0.7)), Z * 0.7 + Z.cos() + 5)


def test_guidance_is_not_applied_twice_unless_it_is_asked_for() -> None:
    for guidance in (
        ClassifierFree(scale=3.0),
        ThreeChannel(scale=3.0),
        Autoguidance(scale=3.0, guide=Backbone()),
    ):
        sampler = Sampler(solver=Euler(), guidance=guidance, steps=1)
        for use in (lambda g=guidance: g(Told(), COND, NULL), lambda s=sampler: s.check(Told())):
            with pytest.raises(
                ValueError, match=r"^guidance would be applied twice: the model takes its scale"
            ):
                use()
        guidance(Told(guidance=None), COND, NULL)  # without the input
        sampler.check(Told(guidance=None))
    for alone in (NoGuidance(), ClassifierFree(scale=1.0), EmbeddedGuidance(scale=3.0)):
        Sampler(solver=Euler(), guidance=alone, steps=1).check(Told())
    with pytest.raises(ValueError, match=r"^guidance\.also=Autoguidance cannot be on top"):
        EmbeddedGuidance(scale=5.0, also=Autoguidance(scale=2.0, guide=Backbone()))
    both = EmbeddedGuidance(scale=5.0, also=ClassifierFree(scale=2.0))(Told(), COND, NULL)
    torch.testing.assert_close(both(Z, T), 2 * CONDITIONAL - UNCONDITIONAL + 5)


def test_a_network_without_the_input_is_refused() -> None:
    for backbone in (Backbone(), Told(guidance=None)):
        with pytest.raises(ValueError, match=r"^guidance=embedded needs a model that takes the scale"):
            EmbeddedGuidance(scale=3.0)(backbone, COND, NULL)
        with pytest.raises(ValueError, match=r"^guidance=embedded needs a model"):
            Sampler(solver=Euler(), guidance=EmbeddedGuidance(scale=3.0), steps=1).check(backbone)
