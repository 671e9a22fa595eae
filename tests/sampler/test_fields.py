"""Known regions stay on their path, mixtures lie between their ends, and noise stays noise."""

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.flow import interpolate
from rfdit.sampler import ClassifierFree, Euler, Heun, NoGuidance, Sampler, Solver
from rfdit.sampler.fields import Between, KnownRegion, Observed, slerp


class Linear:
    """v = pooled + z: known parts of z do not mix with the others, and guidance is linear."""

    def __call__(self, z_t: Latent, t: Tensor, cond: Condition) -> Latent:
        return cond.pooled[:, :, None, None] + z_t + t.view(-1, 1, 1, 1)


def condition(value: float, n: int = 2) -> Condition:
    return Condition(pooled=torch.full((n, 1), float(value)))


@pytest.mark.parametrize("solver", [Euler(), Heun()])
def test_the_known_region_follows_its_path(solver: Solver) -> None:
    z0, z1 = torch.randn(1, 1, 4, 4).expand(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    known = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    known[..., :2] = True
    guidance = KnownRegion(guidance=ClassifierFree(scale=3.0), known=known, z0=z0, z1=z1)
    sampler = Sampler(solver=solver, guidance=guidance, steps=5)
    times = sampler.times(torch.device("cpu"))

    def on_step(done: int, z: Latent) -> None:
        on_path = interpolate(z0, z1, times[done].expand(2))
        torch.testing.assert_close(z[..., :2], on_path[..., :2])

    end = sampler(Linear(), z1, condition(1), condition(0), on_step=on_step)
    torch.testing.assert_close(end[..., :2], z0[..., :2])
    free = Sampler(solver=solver, guidance=ClassifierFree(scale=3.0), steps=5)
    torch.testing.assert_close(end[..., 2:], free(Linear(), z1, condition(1), condition(0))[..., 2:])


def test_between_two_conditions() -> None:
    def field(guidance: object, cond: Condition) -> Latent:
        assert isinstance(guidance, Between | ClassifierFree)
        return guidance(Linear(), cond, condition(0))(z, torch.tensor(0.5))

    def between(weight: Tensor) -> Between:
        return Between(guidance=inner, other=condition(5), other_null=condition(0), weight=weight)

    z, inner = torch.randn(2, 1, 4, 4), ClassifierFree(scale=2.0)
    weight = torch.tensor([0.0, 1.0])
    mixed = field(between(weight), condition(1))
    assert torch.equal(mixed[0], field(inner, condition(1))[0])
    assert torch.equal(mixed[1], field(inner, condition(5))[1])
    half = field(between(torch.full((2,), 0.25)), condition(1))
    torch.testing.assert_close(half, field(inner, condition(2)))  # a linear field: 0.75 * 1 + 0.25 * 5


def test_every_evaluation_is_seen() -> None:
    seen: list[tuple[Latent, Latent, float]] = []
    guidance = Observed(guidance=NoGuidance(), watch=lambda z, v, t: seen.append((z, v, float(t))))
    noise = torch.randn(2, 1, 4, 4)
    Sampler(solver=Heun(), guidance=guidance, steps=2)(Linear(), noise, condition(1), condition(0))
    assert [t for _, _, t in seen] == [1.0, 0.5, 0.5, 0.0]
    assert torch.equal(seen[0][0], noise)
    torch.testing.assert_close(seen[0][1], noise + 2)


def test_slerp_keeps_noise_noise() -> None:
    a, b = torch.randn(2, 64, 4, 16, 16)
    for end, weight in ((a, 0.0), (b, 1.0)):
        torch.testing.assert_close(slerp(a, b, torch.full((64,), weight)), end)
    middle = slerp(a, b, torch.full((64,), 0.5))
    assert middle.std() == pytest.approx(1, abs=0.01)  # the straight line's middle has 0.71
    # Equal angles: the quarter is as far from the beginning as from the middle.
    quarter, flat = slerp(a, b, torch.full((64,), 0.25)), torch.nn.functional.cosine_similarity
    near, far = (flat(quarter.flatten(1), other.flatten(1)) for other in (a, middle))
    torch.testing.assert_close(near, far, rtol=0, atol=0.01)


def test_slerp_of_one_line() -> None:
    a = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(slerp(a, a, torch.full((3,), 0.3)), a)
    assert bool(slerp(a, -a, torch.full((3,), 0.5)).isfinite().all())
