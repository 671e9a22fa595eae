"""Classifier-free guidance: u + w (c - u) on all channels, and what it costs."""

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.sampler import ClassifierFree, Euler, Guidance, NoGuidance, Sampler

Z = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(1))
COND, NULL = Condition(pooled=torch.ones(3, 1)), Condition(pooled=torch.zeros(3, 1))
T = torch.tensor(0.5)


class Backbone:
    """A velocity that depends on everything; notes the batch of each evaluation."""

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


def test_a_negative_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"guidance\.scale=-1\.0 must not be negative"):
        ClassifierFree(scale=-1.0)
