"""Averages are the weighted sums over all steps that their profiles state."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from rfdit.conditioning import LabelConditioner
from rfdit.ema import Averages, FixedDecay, PowerFunction, Profile
from rfdit.network import Network

STDS = [0.02, 0.05, 0.1, 0.15, 0.25]


def step_weights(profile: Profile, steps: int) -> Tensor:
    """(steps + 1,) the share of the initial weights, and of each step's, in the average, in float64."""
    weights = torch.zeros(steps + 1, dtype=torch.float64)
    weights[0] = 1
    for update in range(1, steps + 1):
        weights *= 1 - profile.rate(update)
        weights[update] += profile.rate(update)
    return weights


@pytest.mark.parametrize("std", STDS)
def test_power_function_has_the_closed_form(std: float) -> None:
    """Step t's weight is the integral of (power + 1) t^power / T^(power + 1) over [t - 1, t]."""
    profile, steps = PowerFunction(std=std), 1000
    t = torch.arange(steps + 1, dtype=torch.float64)
    integral = (t / steps) ** (profile.power + 1)
    weights = step_weights(profile, steps)
    assert weights[0] == 0
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(weights[1:], integral.diff(), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("std", STDS)
def test_power_function_is_as_long_as_asked(std: float) -> None:
    steps = 10_000
    weights = step_weights(PowerFunction(std=std), steps)
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    mean = (weights * t).sum()
    relative = ((weights * (t - mean) ** 2).sum()).sqrt()
    assert relative.item() == pytest.approx(std, rel=1e-4)


def test_the_papers_powers() -> None:
    """Near the uniform average the power vanishes; EDM2 names 6.94 for 0.10 and 16.97 for 0.05."""
    assert PowerFunction(std=0.05).power == pytest.approx(16.97, abs=0.005)
    assert PowerFunction(std=0.10).power == pytest.approx(6.94, abs=0.005)
    assert PowerFunction(std=0.288675).power == pytest.approx(0, abs=1e-4)


def test_fixed_decay_is_the_explicit_sum() -> None:
    decay, steps = 0.9, 50
    expected = [decay**steps] + [(1 - decay) * decay ** (steps - t) for t in range(1, steps + 1)]
    weights = step_weights(FixedDecay(decay=decay, warmup=False), steps)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_warm_up_keeps_less_at_first() -> None:
    """min(decay, (1 + n) / (10 + n)) after n updates."""
    profile = FixedDecay(decay=0.9999)
    for n in (0, 1, 90):
        assert 1 - profile.rate(n + 1) == pytest.approx((1 + n) / (10 + n), rel=1e-12)
    assert profile.rate(10**6) == pytest.approx(1e-4)


def test_rates_stay_exact_in_long_runs() -> None:
    """The naive 1 - (1 - 1/t)^p loses digits where they are needed."""
    profile, t = PowerFunction(std=0.1), 10**9
    assert profile.rate(t) == pytest.approx((profile.power + 1) / t, rel=1e-8)


@pytest.mark.parametrize("std", [0.0, -0.1, 12**-0.5, 0.5, math.nan])
def test_std_must_be_possible(std: float) -> None:
    with pytest.raises(ValueError, match=r"std=.* must be more than 0 and less than 0\.2887, the uniform"):
        PowerFunction(std=std)


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_decay_must_be_possible(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay=.* must be at least 0 and less than 1"):
        FixedDecay(decay=decay)


def test_averages_follow_their_profiles() -> None:
    """Compared with the explicit weighted sums of all steps' weights; frozen weights stay."""
    labels = LabelConditioner(num_classes=3, width=4)
    labels.table.weight.requires_grad_(False)
    network = Network(backbone=nn.Linear(3, 4), conditioner=labels)
    profiles = {"fixed": FixedDecay(decay=0.8), "power": PowerFunction(std=0.12)}
    averages = Averages(network=network, profiles=profiles)
    averages.start(network, {})
    assert averages.trained == ["backbone.weight", "backbone.bias"]
    weight = network.backbone.weight  # type: ignore[attr-defined]
    seen = [weight.detach().double()]  # a copy
    for _ in range(30):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        seen.append(weight.detach().double())
        averages.update()
    for name, profile in profiles.items():
        mix = step_weights(profile, 30)
        expected = sum(mix[t] * seen[t] for t in range(31))
        average = averages.networks[name]
        torch.testing.assert_close(average.backbone.weight.double(), expected, rtol=1e-5, atol=1e-5)  # type: ignore[attr-defined]
        assert torch.equal(average.conditioner.table.weight, labels.table.weight)  # type: ignore[attr-defined]
        assert averages.updates[name] == 30


@pytest.mark.parametrize("every", [2, 3, 4])
def test_an_update_stands_for_the_steps_since_the_last(every: int) -> None:
    """The weights of every n-th step weigh as much as all n; saved and restored between two updates."""
    network = Network(
        backbone=nn.Linear(3, 4), conditioner=LabelConditioner(num_classes=3, width=4).requires_grad_(False)
    )
    profiles = {"fixed": FixedDecay(decay=0.8), "power": PowerFunction(std=0.12)}
    averages = Averages(network=network, profiles=profiles)
    averages.start(network, {})
    weight = network.backbone.weight  # type: ignore[attr-defined]
    seen = [weight.detach().double()]
    for step in range(1, 26):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        seen.append(weight.detach().double())
        averages.update(due=step % every == 0)
        if step == 5:
            saved = copy.deepcopy(averages.state_dict())
            averages = Averages(network=network, profiles=profiles)
            averages.start(network, saved)
    last = 25 - 25 % every
    for name, profile in profiles.items():
        assert (averages.updates[name], averages.waiting[name]) == (last, 25 % every)
        mix = step_weights(profile, last)
        expected = mix[0] * seen[0]
        for end in range(every, last + 1, every):
            expected += mix[end - every + 1 : end + 1].sum() * seen[end]
        average = averages.networks[name].backbone.weight  # type: ignore[attr-defined]
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-5)


def test_averages_know_the_steps_that_wait() -> None:
    network = Network(backbone=nn.Linear(3, 4), conditioner=LabelConditioner(num_classes=3, width=4))
    averages = Averages(network=network, profiles={"power": PowerFunction(std=0.12)})
    averages.start(network, {})
    for step in range(1, 7):
        averages.update(due=step == 4)
    assert (averages.updates, averages.waiting) == ({"power": 4}, {"power": 2})
    averages.update()
    assert (averages.updates, averages.waiting) == ({"power": 7}, {"power": 0})
    averages.update(due=False)
    saved = averages.state_dict()
    averages.start(network, {})
    averages.start(network, saved)
    assert (averages.updates, averages.waiting) == ({"power": 7}, {"power": 1})
