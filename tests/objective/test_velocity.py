"""Rectified flow's loss: zero for the true field, computed by hand for a wrong one, independent per sample."""

import pytest
import torch
from torch import Tensor

from rfdit import flow
from rfdit.batch import Condition
from rfdit.objective import (
    IndependentCoupling,
    LogitNormalTime,
    OptimalTransportCoupling,
    UniformTime,
    VelocityMatching,
)
from rfdit.randomness import SampleGenerator


def keyed(n: int, *, first: int = 0) -> SampleGenerator:
    return SampleGenerator(seed=0, keys=torch.arange(first, first + n))


def objective(shift: float = 1.0) -> VelocityMatching:
    return VelocityMatching(time=UniformTime(), coupling=IndependentCoupling(), shift=shift)


NOTHING = Condition(pooled=torch.zeros(6, 1))
Z0 = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(5))


def zero_field(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    return torch.zeros_like(z_t)


def test_the_true_field_has_no_loss() -> None:
    """With one data point z0 the velocity at z_t is known: (z_t - z0) / t."""
    point = Z0[:1].expand(6, -1, -1, -1)

    def oracle(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return (z_t - point) / flow.per_sample(t, z_t)

    loss = objective()(oracle, point, NOTHING, generator=keyed(6))
    torch.testing.assert_close(loss.per_sample, torch.zeros(6), atol=1e-8, rtol=0)


def test_the_loss_is_the_mean_square_of_what_is_missed() -> None:
    loss = objective()(zero_field, Z0, NOTHING, generator=keyed(6))
    z1 = keyed(6).fork("noise").normal(4, 2, 2)
    by_hand = torch.stack([((z1[i] - Z0[i]) ** 2).sum() / 16 for i in range(6)])
    torch.testing.assert_close(loss.per_sample, by_hand)
    torch.testing.assert_close(loss.total, by_hand.mean())


def test_the_backbone_sees_the_path_at_its_own_time_and_condition() -> None:
    seen = {}

    def backbone(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        seen.update(z_t=z_t, t=t, cond=cond)
        return torch.zeros_like(z_t)

    loss = objective()(backbone, Z0, NOTHING, generator=keyed(6))
    z1 = keyed(6).fork("noise").normal(4, 2, 2)
    torch.testing.assert_close(seen["z_t"], flow.interpolate(Z0, z1, loss.t))
    assert seen["t"] is loss.t
    assert seen["cond"] is NOTHING


def test_a_samples_loss_does_not_depend_on_its_batch() -> None:
    whole = objective()(zero_field, Z0, NOTHING, generator=keyed(6))
    part = objective()(zero_field, Z0[4:], NOTHING[4:], generator=keyed(2, first=4))
    torch.testing.assert_close(part.per_sample, whole.per_sample[4:])
    assert torch.equal(part.t, whole.t[4:])


def test_noise_and_time_are_independent_of_each_other() -> None:
    one = VelocityMatching(time=LogitNormalTime(), coupling=IndependentCoupling())
    n = 2000
    loss = one(zero_field, torch.zeros(n, 1, 1, 1), Condition(torch.zeros(n, 1)), generator=keyed(n))
    assert abs(torch.corrcoef(torch.stack([loss.t, loss.per_sample]))[0, 1].item()) < 0.1


def test_the_shift_moves_the_times() -> None:
    plain = objective()(zero_field, Z0, NOTHING, generator=keyed(6))
    shifted = objective(3.0)(zero_field, Z0, NOTHING, generator=keyed(6))
    torch.testing.assert_close(shifted.t, flow.shift_time(plain.t, 3.0))
    assert (shifted.t > plain.t).all()


def test_only_the_total_has_a_gradient() -> None:
    weight = torch.ones((), requires_grad=True)
    loss = objective()(lambda z_t, t, cond: weight * z_t, Z0, NOTHING, generator=keyed(6))
    assert loss.total.requires_grad
    assert not loss.per_sample.requires_grad
    assert not loss.t.requires_grad


def test_the_loss_is_float32_for_a_bf16_network() -> None:
    loss = objective()(lambda z_t, t, cond: z_t.bfloat16(), Z0, NOTHING, generator=keyed(6))
    assert loss.total.dtype == torch.float32


def test_the_coupling_chooses_the_noise() -> None:
    transport = VelocityMatching(time=UniformTime(), coupling=OptimalTransportCoupling())
    coupled = transport(zero_field, Z0 * 3, NOTHING, generator=keyed(6)).total
    independent = objective()(zero_field, Z0 * 3, NOTHING, generator=keyed(6)).total
    assert coupled < independent


def test_a_shift_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"objective\.shift=0\.0 must be positive"):
        objective(0.0)


def test_a_weighting_is_in_the_total_alone() -> None:
    def late(t: Tensor) -> Tensor:
        return 2 * t

    weighted = VelocityMatching(time=UniformTime(), coupling=IndependentCoupling(), weighting=late)
    plain = objective()(zero_field, Z0, NOTHING, generator=keyed(6))
    loss = weighted(zero_field, Z0, NOTHING, generator=keyed(6))
    torch.testing.assert_close(loss.per_sample, plain.per_sample)
    torch.testing.assert_close(loss.total, (2 * loss.t * loss.per_sample).mean())
    torch.testing.assert_close(plain.total, plain.per_sample.mean())
