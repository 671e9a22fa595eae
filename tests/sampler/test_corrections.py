"""Corrected guidance: each correction's claims, and classifier-free guidance where it corrects nothing."""

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.sampler import (
    AdaptiveProjected,
    CFGRescale,
    CFGZeroStar,
    ClassifierFree,
    Euler,
    Guidance,
    Heun,
    Sampler,
)
from tests.support.models.fields import GaussianBackbone, means

Z = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
C, U = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(2))
COND, NULL = Condition(pooled=torch.ones(3, 1)), Condition(pooled=torch.zeros(3, 1))
T = torch.tensor(0.5)


class Fixed:
    """c where the condition is 1, u where it is 0, for all z and t."""

    def __init__(self, c: Tensor = C, u: Tensor = U) -> None:
        self.c, self.u, self.evaluations = c, u, 0

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.evaluations += 1
        rows = len(z_t) // 3
        on = cond.pooled[:, :, None, None]
        return on * self.c.repeat(rows, 1, 1, 1) + (1 - on) * self.u.repeat(rows, 1, 1, 1)


def guided(guidance: Guidance, z: Tensor = Z, t: Tensor = T, c: Tensor = C, u: Tensor = U) -> Tensor:
    return guidance(Fixed(c, u), COND, NULL)(z, t)


def dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2, 3))


PLAIN = guided(ClassifierFree(scale=5.0))
CORRECTED = [
    CFGRescale(scale=5.0, rescale=0.0),
    AdaptiveProjected(scale=5.0, eta=1.0),
]


@pytest.mark.parametrize("guidance", CORRECTED, ids=lambda g: type(g).__name__)
def test_without_correction_it_is_classifier_free_guidance(guidance: Guidance) -> None:
    torch.testing.assert_close(guided(guidance), PLAIN, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("correction", [CFGRescale, AdaptiveProjected, CFGZeroStar])
def test_one_or_two_evaluations(correction: type) -> None:
    both, apart = Fixed(), Fixed()
    batched = correction(scale=3.0)(both, COND, NULL)(Z, T)
    torch.testing.assert_close(correction(scale=3.0, batched=False)(apart, COND, NULL)(Z, T), batched)
    assert (both.evaluations, apart.evaluations) == (1, 2)


@pytest.mark.parametrize("correction", [CFGRescale, AdaptiveProjected, CFGZeroStar])
def test_scale_one_is_the_conditional(correction: type) -> None:
    torch.testing.assert_close(guided(correction(scale=1.0)), C)


@pytest.mark.parametrize("correction", [CFGRescale, AdaptiveProjected, CFGZeroStar])
def test_an_untrained_networks_zeros_stay_zeros(correction: type) -> None:
    zeros = torch.zeros_like(Z)
    assert torch.equal(guided(correction(scale=3.0), c=zeros, u=zeros), zeros)


@pytest.mark.parametrize("correction", [CFGRescale, AdaptiveProjected, CFGZeroStar])
def test_samples_do_not_mix(correction: type) -> None:
    """A sample's field depends on the sample alone, however large its neighbours are."""
    loud = torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1, 1)
    v = guided(correction(scale=3.0))
    torch.testing.assert_close(guided(correction(scale=3.0), z=Z * loud, c=C * loud, u=U * loud)[0], v[0])


def test_rescaling_brings_back_the_conditionals_spread() -> None:
    spread, expected, plain = (
        x.flatten(1).std(1) for x in (guided(CFGRescale(scale=5.0, rescale=1.0)), C, PLAIN)
    )
    torch.testing.assert_close(spread, expected)
    assert (plain > 2 * expected).all()
    half = guided(CFGRescale(scale=5.0, rescale=0.5))
    torch.testing.assert_close(half, (PLAIN + guided(CFGRescale(scale=5.0, rescale=1.0))) / 2)


def z0_update(guidance: Guidance) -> Tensor:
    """The guided prediction of z0 less the conditional one."""
    return (Z - T * guided(guidance)) - (Z - T * C)


def test_projected_guidance_moves_across_the_prediction() -> None:
    onto, plain = Z - T * C, 4 * T * (U - C)
    update = z0_update(AdaptiveProjected(scale=5.0, eta=0.0))
    torch.testing.assert_close(dots(update, onto), torch.zeros(3), atol=1e-3, rtol=0)
    # What is missing lies along the prediction.
    left = plain - update
    torch.testing.assert_close(
        left, (dots(left, onto) / dots(onto, onto)).view(3, 1, 1, 1) * onto, atol=1e-4, rtol=0
    )
    half = z0_update(AdaptiveProjected(scale=5.0, eta=0.5))
    torch.testing.assert_close(half, (plain + update) / 2, atol=1e-4, rtol=0)


def test_projected_guidance_is_of_limited_length() -> None:
    free = z0_update(AdaptiveProjected(scale=2.0, eta=1.0))
    lengths = dots(free, free).sqrt()
    limit = float(lengths.sort().values[1])  # one sample below, one above
    short = z0_update(AdaptiveProjected(scale=2.0, eta=1.0, norm_threshold=limit))
    torch.testing.assert_close(dots(short, short).sqrt(), lengths.clamp(max=limit))
    torch.testing.assert_close(short / limit, free / lengths.clamp(min=limit).view(3, 1, 1, 1))


def test_projected_guidance_has_momentum_within_a_call() -> None:
    """The second update is d + m d of the first; a new call begins anew."""
    guidance = AdaptiveProjected(scale=2.0, eta=1.0, momentum=-0.5)
    field = guidance(Fixed(), COND, NULL)
    first, second = field(Z, torch.tensor(0.8)), field(Z, torch.tensor(0.4))
    torch.testing.assert_close(first, C - (U - C), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, C - (0.4 - 0.5 * 0.8) / 0.4 * (U - C), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guidance(Fixed(), COND, NULL)(Z, torch.tensor(0.8)), first)


def test_projected_guidance_is_the_conditional_at_data() -> None:
    """Solvers that evaluate the end of the last step do so at t = 0, where there is nothing to predict."""
    assert torch.equal(guided(AdaptiveProjected(scale=5.0, momentum=-0.5), t=torch.tensor(0.0)), C)
    sampler = Sampler(solver=Heun(), guidance=AdaptiveProjected(scale=5.0, momentum=-0.5), steps=8)
    assert sampler(GaussianBackbone(), Z, means(3, 2.0), means(3, 0.5)).isfinite().all()


def test_zero_star_takes_the_nearest_multiple() -> None:
    """The a that minimises |c - a u| is <c, u> / |u|^2; the rest is orthogonal to u."""
    v = guided(CFGZeroStar(scale=3.0, zero_init=0.0))
    au = (3 * C - v) / 2  # v = a u + 3 (c - a u)
    torch.testing.assert_close(dots(C - au, U), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(au, (dots(au, U) / dots(U, U)).view(3, 1, 1, 1) * U, atol=1e-4, rtol=0)


def test_zero_star_follows_a_conditional_that_is_a_multiple() -> None:
    torch.testing.assert_close(guided(CFGZeroStar(scale=7.0), c=3 * U), 3 * U, atol=1e-5, rtol=1e-5)


def test_zero_star_rests_in_the_first_step() -> None:
    """The first of 25 equal steps is 0.04: z stays, and the network is not evaluated."""
    seen: list[Tensor] = []
    backbone = Fixed()
    sampler = Sampler(solver=Euler(), guidance=CFGZeroStar(scale=3.0, zero_init=0.04), steps=25)
    sampler(backbone, Z, COND, NULL, on_step=lambda i, z: seen.append(z))
    assert torch.equal(seen[0], Z)
    assert not torch.equal(seen[1], Z)
    assert backbone.evaluations == 24


@pytest.mark.parametrize(
    ("correction", "setting", "message"),
    [
        (CFGRescale, {"rescale": 1.5}, r"guidance\.rescale=1\.5 must lie between 0 and 1"),
        (AdaptiveProjected, {"norm_threshold": 0.0}, r"guidance\.norm_threshold=0\.0 must be positive"),
        (AdaptiveProjected, {"momentum": 1.0}, r"guidance\.momentum=1\.0 must lie between -1 and 1"),
        (CFGZeroStar, {"zero_init": 1.0}, r"guidance\.zero_init=1\.0 must be at least 0 and less than 1"),
        (CFGRescale, {"scale": -1.0}, r"guidance\.scale=-1\.0 must be at least 0 and finite"),
    ],
)
def test_settings_out_of_range_are_refused(correction: type, setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        correction(**{"scale": 3.0} | setting)
