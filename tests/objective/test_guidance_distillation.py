"""Distilled guidance: nothing at the start, no loss for the guided field, and learned from one batch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rfdit.batch import Batch, Condition, Latent, Time
from rfdit.model import DiT, Flux, MMDiT
from rfdit.objective import GuidanceDistillation, IndependentCoupling, UniformTime
from rfdit.randomness import SampleGenerator
from rfdit.sampler import ClassifierFree, EmbeddedGuidance
from tests.support.models.networks import DiTFactory

CENTRE = {"conditional": 1.0, "null": -0.5}
NOTHING = Condition(pooled=torch.zeros(6, 1))
Z0 = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(5))


class Pair:
    """A teacher whose two velocities are known."""

    def read(self, batch: Batch, *, device: torch.device) -> None:
        raise AssertionError

    def __call__(self, z_t: Latent, t: Time) -> tuple[Latent, Latent]:
        return z_t + CENTRE["conditional"], z_t + CENTRE["null"]


class Guided:
    """The guided field of that teacher, at a scale that it takes; `wrong` is added to the scale."""

    def __init__(self, *, wrong: float = 0.0) -> None:
        self.guidance = 1.0
        self.wrong, self.seen = wrong, torch.empty(0)

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.guidance is not None
        self.seen = cond.guidance
        scale = (self.seen + self.wrong)[:, None, None, None]
        return z_t + CENTRE["null"] + scale * (CENTRE["conditional"] - CENTRE["null"])


def keyed(n: int = 6) -> SampleGenerator:
    return SampleGenerator(seed=0, keys=torch.arange(n))


def objective(**settings: object) -> GuidanceDistillation:
    made = {"teacher": Pair(), "time": UniformTime(), "coupling": IndependentCoupling()} | settings
    return GuidanceDistillation(**made)  # type: ignore[arg-type]


def test_the_guided_field_has_no_loss() -> None:
    """Of any scale from 1 to the largest; a network at other scales has that of the difference."""
    network = Guided()
    loss = objective(max_scale=5.0)(network, Z0, NOTHING, generator=keyed())
    torch.testing.assert_close(loss.per_sample, torch.zeros(6), atol=1e-10, rtol=0)
    assert 1 < network.seen.min() < 2.5
    assert 3 < network.seen.max() < 5
    wrong = objective()(Guided(wrong=0.5), Z0, NOTHING, generator=keyed())
    torch.testing.assert_close(wrong.per_sample, torch.full((6,), (0.5 * 1.5) ** 2))


def test_a_samples_scale_is_its_own() -> None:
    whole, part = Guided(), Guided()
    objective()(whole, Z0, NOTHING, generator=keyed())
    objective()(part, Z0[:2], NOTHING[:2], generator=keyed(2))
    assert torch.equal(part.seen, whole.seen[:2])


@pytest.mark.parametrize("kind", [DiT, MMDiT, Flux])
def test_the_scale_has_no_effect_at_first(kind: type[DiT | MMDiT | Flux]) -> None:
    """A network with the teacher's weights is the teacher, to the last bit, whatever the scale."""
    settings = {
        "width": 32, "depth": 1, "num_heads": 4, "patch_size": 2, "in_channels": 3, "input_size": 4, "pooled_width": 6,
    } | ({} if kind is DiT else {"token_width": 10})  # fmt: skip
    plain, told = kind(**settings), kind(**settings, guidance=2.0)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    added = told.load_state_dict(plain.state_dict(), strict=False)
    assert {name.rpartition(".")[0] for name in added.missing_keys} == {
        "time.guidance.hidden",
        "time.guidance.out",
    }
    assert not added.unexpected_keys
    tokens = None if kind is DiT else torch.randn(6, 4, 10)
    cond, t = Condition(pooled=torch.randn(6, 6), tokens=tokens), torch.rand(6)
    expected = plain(Z0, t, cond)
    assert torch.equal(told(Z0, t, cond), expected)
    assert torch.equal(told(Z0, t, replace(cond, guidance=torch.linspace(1, 9, 6))), expected)
    with pytest.raises(ValueError, match=r"^model\.guidance=null does not take the scale"):
        plain(Z0, t, replace(cond, guidance=torch.ones(6)))


def test_a_batch_is_learned(dit: DiTFactory) -> None:
    """At any scale, one evaluation is what classifier-free guidance makes of the teacher's two."""
    teacher = dit(pooled_width=1, depth=1, input_size=4)
    cond, null = Condition(pooled=torch.ones(6, 1)), Condition(pooled=torch.zeros(6, 1))
    student = dit(initial=True, pooled_width=1, depth=1, input_size=4, guidance=2.0)
    student.load_state_dict(teacher.state_dict(), strict=False)
    t = torch.tensor(0.6)

    fields = [ClassifierFree(scale=scale)(teacher, cond, null) for scale in (0.0, 1.0)]
    u, c = (field(Z0, t).detach() for field in fields)

    def error(scale: float) -> Tensor:
        v = EmbeddedGuidance(scale=scale)(student, cond, null)(Z0, t)
        return (v - (u + scale * (c - u))).square().mean()

    measured = [1.5, 3.0, 4.5]
    before = [error(scale).item() for scale in measured]
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for step in range(200):
        optimizer.zero_grad()
        error(1 + 4 * ((step * 0.618) % 1)).backward()
        optimizer.step()
    after = [error(scale).item() for scale in measured]
    assert max(after) < 0.05 * max(before), (before, after)


def test_what_is_missing_is_one_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"^objective=guidance_distillation learns from another network; give"
    ):
        objective(teacher=None)
    with pytest.raises(
        ValueError, match=r"^objective=guidance_distillation needs a model that takes the scale"
    ):
        objective()(lambda z_t, t, cond: z_t, Z0, NOTHING, generator=keyed())
