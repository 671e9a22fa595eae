"""Contrastive flow matching: the plain loss without contrast, its closed-form minimiser, and no batch of one."""

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.objective import ContrastiveFlowMatching, IndependentCoupling, UniformTime, VelocityMatching
from rfdit.protocols import FlowLoss
from rfdit.randomness import SampleGenerator

Z0 = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(5))


def contrastive(contrast: float) -> ContrastiveFlowMatching:
    return ContrastiveFlowMatching(time=UniformTime(), coupling=IndependentCoupling(), contrast=contrast)


def loss_of(objective: ContrastiveFlowMatching | VelocityMatching, z0: Tensor, field: Tensor) -> FlowLoss:
    """The loss of a network that is one vector for all samples."""
    generator = SampleGenerator(seed=0, keys=torch.arange(len(z0)))
    cond = Condition(pooled=torch.zeros(len(z0), 1))
    return objective(lambda z_t, t, cond: field.expand_as(z_t), z0, cond, generator=generator)


def test_without_contrast_it_is_velocity_matching_to_the_last_bit() -> None:
    plain = VelocityMatching(time=UniformTime(), coupling=IndependentCoupling())
    field = torch.full((1, 4, 2, 2), 0.3)
    one, other = loss_of(contrastive(0.0), Z0, field), loss_of(plain, Z0, field)
    assert torch.equal(one.total, other.total)
    assert torch.equal(one.per_sample, other.per_sample)


def test_the_minimiser_is_that_of_the_formula() -> None:
    """One field for all samples has the minimiser (E[v_i] - contrast E[v_j]) / (1 - contrast) = E[v]."""
    field = torch.zeros(1, 4, 2, 2, requires_grad=True)
    loss_of(contrastive(0.2), Z0, field).total.backward()
    z1 = SampleGenerator(seed=0, keys=torch.arange(6)).fork("noise").normal(4, 2, 2)
    mean = (z1 - Z0).mean(0)
    assert field.grad is not None
    # d/dv of mean_d |v - a|^2 - c mean_d |v - b|^2, averaged over samples, at v = 0.
    torch.testing.assert_close(field.grad[0], -2 * (1 - 0.2) * mean / 16)


def test_the_neighbours_velocity_is_pushed_away() -> None:
    """With one output per sample the gradient is 2 ((v - v_i) - contrast (v - v_j)) / d / b."""
    field = torch.zeros(6, 4, 2, 2, requires_grad=True)
    loss_of(contrastive(0.2), Z0, field).total.backward()
    v = SampleGenerator(seed=0, keys=torch.arange(6)).fork("noise").normal(4, 2, 2) - Z0
    assert field.grad is not None
    torch.testing.assert_close(field.grad, -2 * (v - 0.2 * v.roll(1, dims=0)) / 16 / 6)


def test_the_samples_own_errors_stay_comparable() -> None:
    loss = loss_of(contrastive(0.2), Z0, torch.zeros(1, 4, 2, 2))
    plain = loss_of(contrastive(0.0), Z0, torch.zeros(1, 4, 2, 2))
    assert torch.equal(loss.per_sample, plain.per_sample)
    torch.testing.assert_close(loss.total, loss.parts["matching"] - 0.2 * loss.parts["contrast"])


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective=contrastive compares .* give data\.batch_size=2"):
        loss_of(contrastive(0.05), Z0[:1], torch.zeros(1, 4, 2, 2))
