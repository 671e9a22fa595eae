"""Diffusion-DPO: log 2 at the start, the closed form of its gradient, its symmetries, and the reference."""

import math

import pytest
import torch
from torch import Tensor

from rfdit import flow
from rfdit.batch import Condition
from rfdit.model.adapters import LoHa, LoKr, LoRA, Unadapted, inject
from rfdit.model.prediction import DataPrediction
from rfdit.objective import (
    DataWeighting,
    DiffusionDPO,
    IndependentCoupling,
    OptimalTransportCoupling,
    UncertaintyWeighting,
    UniformTime,
)
from rfdit.protocols import FlowLoss, VelocityNetwork
from rfdit.randomness import SampleGenerator
from tests.support.models.networks import DiTFactory, randomise

PAIRS = 4
BETA = 50.0  # small enough that sigmoids are not saturated
DRAW = torch.Generator().manual_seed(5)
WIN, LOSE = torch.randn(2, PAIRS, 3, 8, 8, generator=DRAW)
KEYS = SampleGenerator(seed=0, keys=torch.arange(PAIRS))
COND = Condition(pooled=torch.randn(PAIRS, 32, generator=DRAW))


def objective(**settings: object) -> DiffusionDPO:
    return DiffusionDPO(**{"time": UniformTime(), "coupling": IndependentCoupling(), "beta": BETA} | settings)


def loss_of(
    network: VelocityNetwork,
    reference: VelocityNetwork,
    win: Tensor = WIN,
    lose: Tensor = LOSE,
    **settings: object,
) -> FlowLoss:
    """The loss of pairs, as a training step puts them together."""
    return objective(**settings)(
        network,
        torch.cat([win, lose]),
        Condition.join([COND, COND]),
        generator=KEYS,
        reference=reference,
    )


def constant(value: Tensor) -> VelocityNetwork:
    """A network of one value."""
    return lambda z_t, t, cond: value * torch.ones_like(z_t)


ZERO = constant(torch.zeros(()))


def errors(value: Tensor | float, z0: Tensor) -> Tensor:
    """The error of `constant(value)` for each image, by hand."""
    z1 = KEYS.fork("noise").normal(3, 8, 8)
    return torch.stack([((value - (z1[i] - z0[i])) ** 2).sum() / 192 for i in range(PAIRS)])


def test_at_the_start_the_loss_is_log_2_and_all_is_tied() -> None:
    loss = loss_of(ZERO, ZERO)
    assert loss.total.item() == pytest.approx(math.log(2), abs=1e-7)
    assert loss.parts["accuracy"].item() == 0.5
    assert loss.parts["margin"].item() == 0


def test_the_loss_is_that_of_the_formula() -> None:
    value = 0.05
    loss = loss_of(constant(torch.tensor(value)), ZERO)
    win, lose = (errors(value, z0) - errors(0.0, z0) for z0 in (WIN, LOSE))
    margin = -BETA / 2 * (win - lose)
    torch.testing.assert_close(loss.total, torch.log(1 + torch.exp(-margin)).mean())
    torch.testing.assert_close(loss.parts["margin"], margin.mean())
    torch.testing.assert_close(loss.parts["accuracy"], (margin > 0).float().mean())
    torch.testing.assert_close(loss.parts["preferred"], win.mean())
    torch.testing.assert_close(loss.parts["rejected"], lose.mean())
    torch.testing.assert_close(loss.per_sample, errors(value, WIN))


def test_the_gradient_at_the_start_is_beta_over_4_of_the_difference() -> None:
    """dL/dD = (beta / 2) sigmoid(beta D / 2), with D the difference of the pair's errors."""
    value = torch.zeros((), requires_grad=True)
    loss_of(constant(value), ZERO).total.backward()
    difference = torch.zeros((), requires_grad=True)
    (errors(difference, WIN) - errors(difference, LOSE)).mean().backward()
    assert value.grad is not None
    assert difference.grad is not None
    torch.testing.assert_close(value.grad, BETA / 4 * difference.grad)


def test_the_gradient_away_from_the_start() -> None:
    at = 0.3
    value, wanted = (torch.tensor(at, requires_grad=True) for _ in range(2))
    loss_of(constant(value), ZERO).total.backward()
    d = errors(wanted, WIN) - errors(wanted, LOSE) - errors(0.0, WIN) + errors(0.0, LOSE)
    d.backward(BETA / 2 * torch.sigmoid(BETA / 2 * d.detach()) / PAIRS)
    assert value.grad is not None
    assert wanted.grad is not None
    torch.testing.assert_close(value.grad, wanted.grad)


def test_the_other_order_turns_the_gradient_round() -> None:
    grads = []
    for win, lose in ((WIN, LOSE), (LOSE, WIN)):
        value = torch.zeros((), requires_grad=True)
        loss_of(constant(value), ZERO, win, lose).total.backward()
        grads.append(value.grad)
    assert grads[0] is not None
    assert grads[0] != 0
    torch.testing.assert_close(grads[0], -grads[1])


def test_equal_images_have_no_gradient() -> None:
    value = torch.tensor(0.3, requires_grad=True)
    loss = loss_of(constant(value), ZERO, WIN, WIN)
    loss.total.backward()
    assert value.grad is not None
    assert abs(value.grad) < 1e-6
    assert loss.total.item() == pytest.approx(math.log(2), abs=1e-5)


def test_both_images_have_the_same_time_noise_and_condition() -> None:
    seen = []

    def network(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        seen.append((z_t, t, cond))
        return torch.zeros_like(z_t)

    loss = loss_of(network, network)
    for z_t, t, cond in seen:  # of the reference and of the network
        assert torch.equal(t[:PAIRS], t[PAIRS:])
        assert torch.equal(t[:PAIRS], loss.t)
        assert torch.equal(cond.pooled[:PAIRS], cond.pooled[PAIRS:])
        z1 = KEYS.fork("noise").normal(3, 8, 8)
        torch.testing.assert_close(z_t[:PAIRS], flow.interpolate(WIN, z1, loss.t))
        torch.testing.assert_close(z_t[PAIRS:], flow.interpolate(LOSE, z1, loss.t))


def test_a_coupling_is_that_of_the_preferred_image() -> None:
    seen = []

    def network(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        seen.append((z_t, t))
        return torch.zeros_like(z_t)

    same = Condition(pooled=torch.zeros(2 * PAIRS, 1))
    far = WIN * 3
    objective(coupling=OptimalTransportCoupling())(
        network, torch.cat([far, LOSE]), same, generator=KEYS, reference=network
    )
    z_t, t = seen[0]
    z1 = [z_t[rows] / flow.per_sample(t[rows], z_t) for rows in (slice(PAIRS), slice(PAIRS, None))]
    ratio = flow.per_sample((1 - t[:PAIRS]) / t[:PAIRS], z_t)
    torch.testing.assert_close(z1[0] - ratio * far, z1[1] - ratio * LOSE, rtol=1e-4, atol=1e-4)


def test_a_weighting_is_within_the_margin() -> None:
    network = constant(torch.tensor(0.05))
    plain, weighted = loss_of(network, ZERO), loss_of(network, ZERO, weighting=DataWeighting())
    win, lose = (errors(0.05, z0) - errors(0.0, z0) for z0 in (WIN, LOSE))
    margin = -BETA / 2 * plain.t**2 * (win - lose)
    torch.testing.assert_close(weighted.parts["margin"], margin.mean())


def test_a_clamped_target_is_that_of_the_network(dit: DiTFactory) -> None:
    """A network of the data whose output is exact has no error, at times below t_min as well."""
    network = DataPrediction(t_min=0.9)(dit())
    network.network.forward = lambda z_t, t, cond: torch.cat([WIN, LOSE])  # type: ignore[method-assign]
    loss = loss_of(network, network)
    torch.testing.assert_close(loss.per_sample, torch.zeros(PAIRS), atol=1e-10, rtol=0)


@pytest.mark.parametrize("adapter", [LoRA(r=2), LoHa(r=2), LoKr(r=2), LoRA(r=2, dora=True)])
def test_the_reference_is_the_network_without_its_adapters(dit: DiTFactory, adapter: LoRA) -> None:
    base, network = dit(), dit()
    inject(network, adapter)
    randomise(network)  # of what is trained: the adapters
    reference = Unadapted(network)
    z, t = WIN, torch.full((PAIRS,), 0.4)
    before = network(z, t, COND)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    found = reference(z, t, COND)
    torch.testing.assert_close(found, base(z, t, COND))
    assert not found.requires_grad
    assert not torch.allclose(before, found, atol=1e-3)
    assert torch.equal(network(z, t, COND), before)  # and they are back
    assert {name for name, p in network.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("bf16", [False, True])
def test_new_adapters_start_at_log_2_and_are_trained(dit: DiTFactory, bf16: bool) -> None:
    network = dit()
    inject(network, LoRA(r=2))
    # Autocast keeps copies of weights, also of those that it has seen without gradients.
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = loss_of(network, Unadapted(network))
    assert loss.total.item() == pytest.approx(math.log(2), abs=1e-7)
    assert loss.parts["accuracy"].item() == 0.5
    loss.total.backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        if "lora_B" in name:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0


def test_mistakes_end_in_a_sentence(dit: DiTFactory) -> None:
    with pytest.raises(ValueError, match=r"objective\.beta=0 must be positive"):
        objective(beta=0)
    with pytest.raises(ValueError, match=r"objective\.shift=-1 must be positive"):
        objective(shift=-1)
    with pytest.raises(ValueError, match="weighting=learned is for the error of one image"):
        objective(weighting=UncertaintyWeighting())
    with pytest.raises(ValueError, match=r"^objective compares the network with itself without its adapters"):
        Unadapted(dit())
