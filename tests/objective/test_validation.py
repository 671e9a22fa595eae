"""The loss at fixed times: closed forms, and the same noise for each time and each sample wherever it stands."""

from itertools import pairwise

import torch
from torch import Tensor

from rfdit import flow
from rfdit.batch import Condition
from rfdit.objective.validation import TIMES, losses_at_times
from rfdit.randomness import SampleGenerator

Z0 = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(5))


def losses(network, z0: Tensor, *, first: int = 0) -> Tensor:  # type: ignore[no-untyped-def]
    generator = SampleGenerator(seed=0, keys=torch.arange(first, first + len(z0)))
    return losses_at_times(network, z0, Condition(pooled=torch.zeros(len(z0), 1)), generator=generator)


def test_the_times_are_equidistant_and_their_mean_is_the_midpoint_rule() -> None:
    gaps = {b - a for a, b in pairwise(TIMES)}
    assert gaps == {1 / 8}
    assert TIMES[0] == 1 - TIMES[-1] == 1 / 16


def test_the_oracle_has_the_conditional_variance_as_its_loss() -> None:
    """For z0 ~ N(mu, s^2), E[|v* - (z1 - z0)|^2 | t] = s^2 / V(t) with V(t) = (1 - t)^2 s^2 + t^2."""
    mu, s = 0.7, 0.4
    z0 = mu + s * torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def oracle(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        t = flow.per_sample(t, z_t)
        variance = (1 - t) ** 2 * s**2 + t**2
        return -mu + (t - (1 - t) * s**2) / variance * (z_t - (1 - t) * mu)

    expected = torch.tensor([s**2 / ((1 - t) ** 2 * s**2 + t**2) for t in TIMES])
    torch.testing.assert_close(losses(oracle, z0).mean(0), expected, rtol=0.02, atol=0)


def test_a_sample_has_the_same_noise_at_all_times_and_in_every_batch() -> None:
    def zero(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return torch.zeros_like(z_t)

    whole = losses(zero, Z0)
    assert torch.equal(whole, whole[:, :1].expand(-1, len(TIMES)))
    torch.testing.assert_close(losses(zero, Z0[4:], first=4), whole[4:])
