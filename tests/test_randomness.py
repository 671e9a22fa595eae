"""Numbers that belong to samples: distributed as promised, and the same wherever a sample is drawn."""

import pytest
import torch
from scipy import stats

from rfdit.randomness import SampleGenerator


def generator(*keys: int, seed: int = 0, purpose: str = "") -> SampleGenerator:
    return SampleGenerator(seed=seed, keys=torch.tensor(keys), purpose=purpose)


def many(n: int, seed: int = 0) -> SampleGenerator:
    """A generator for n consecutive samples, as a data stream numbers them."""
    return SampleGenerator(seed=seed, keys=torch.arange(n))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_samples_numbers_do_not_depend_on_the_batch(draw: str) -> None:
    whole = getattr(many(8), draw)(4, 3, 3)
    assert torch.equal(whole[5:], getattr(generator(5, 6, 7), draw)(4, 3, 3))
    assert torch.equal(whole[[6, 2]], getattr(generator(6, 2), draw)(4, 3, 3))


def test_samples_may_have_seeds_of_their_own() -> None:
    seeds, keys = [0, 3, 2**63 - 1], [7, 7, 2**40]
    both = SampleGenerator(seed=torch.tensor(seeds), keys=torch.tensor(keys)).fork("noise").normal(5)
    for row, (seed, key) in enumerate(zip(seeds, keys)):
        assert torch.equal(both[row], generator(key, seed=seed).fork("noise").normal(5)[0])


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_there_is_no_state(draw: str) -> None:
    one = many(4)
    first = getattr(one, draw)(5)
    one.normal(7)
    one.fork("other").uniform(3)
    assert torch.equal(getattr(one, draw)(5), first)
    assert torch.equal(getattr(many(4), draw)(5), first)


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    many(4).normal(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_uniform_is_a_prefix_of_a_longer_draw() -> None:
    assert torch.equal(many(4).uniform(10)[:, :3], many(4).uniform(3))


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_normal_follows_the_standard_normal(seed: int) -> None:
    x = many(256, seed).normal(16, 16).flatten().double()
    assert x.mean().item() == pytest.approx(0, abs=0.02)
    assert x.std().item() == pytest.approx(1, abs=0.01)
    assert (x**3).mean().item() == pytest.approx(0, abs=0.05)
    assert (x**4).mean().item() == pytest.approx(3, abs=0.12)
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_uniform_follows_the_unit_interval(seed: int) -> None:
    x = many(65536, seed).uniform()
    assert 0 < x.min() < 1e-4
    assert 1 - 1e-4 < x.max() < 1
    assert stats.kstest(x.numpy(), "uniform").pvalue > 1e-3


def test_tails_are_those_of_a_normal() -> None:
    """Box-Muller on 32 bits reaches far beyond what a million draws need."""
    x = many(1024).normal(1024)
    expected = 2 * stats.norm.sf(4) * x.numel()
    assert (x.abs() > 4).sum().item() == pytest.approx(expected, rel=0.5)
    assert torch.isfinite(x).all()


def test_neighbours_are_uncorrelated() -> None:
    """Neighbouring samples, neighbouring dimensions, and the two halves that Box-Muller pairs."""
    x = many(512).normal(128)
    bound = 5 / (511 * 127) ** 0.5
    assert abs(correlation(x[1:], x[:-1])) < bound
    assert abs(correlation(x[:, 1:], x[:, :-1])) < bound
    assert abs(correlation(x[:, :64], x[:, 64:])) < 2 * bound
    # Box-Muller's pairs share a radius: uncorrelated is not enough, their squares must be so too.
    assert abs(correlation(x[:, :64].square(), x[:, 64:].square())) < 2 * bound


def test_seeds_and_purposes_are_independent() -> None:
    base = many(512).normal(64)
    others = [many(512, seed=1).normal(64), many(512).fork("a").normal(64), many(512).fork("b").normal(64)]
    for other in others:
        assert abs(correlation(base, other)) < 5 / (512 * 64) ** 0.5
    assert abs(correlation(others[1], others[2])) < 5 / (512 * 64) ** 0.5


def test_a_seed_is_not_an_offset_of_the_keys() -> None:
    """Sample 1 of seed 0 is not sample 0 of seed 1."""
    assert not torch.isin(many(64, seed=0).uniform(), many(64, seed=1).uniform()).any()


def test_a_forks_purpose_is_its_path() -> None:
    parent = many(3)
    assert not torch.equal(parent.fork("noise").normal(4), parent.normal(4))
    assert torch.equal(parent.fork("noise").normal(4), many(3).fork("noise").normal(4))
    assert not torch.equal(parent.fork("a").fork("b").normal(4), parent.fork("b").fork("a").normal(4))
    assert torch.equal(parent.fork("noise").normal(4)[1:2], generator(1).fork("noise").normal(4))


@pytest.mark.parametrize("seed", [-1, 2**31, 2**63, 2**64 - 1])
def test_big_seeds_and_keys(seed: int) -> None:
    keys = (0, 2**31, 2**40, 2**62, 2**63 - 1)
    x = generator(*keys, seed=seed).normal(1000)
    assert torch.isfinite(x).all()
    assert len(x[:, 0].unique()) == len(keys)
    torch.testing.assert_close(x.std(1), torch.ones(len(keys)), atol=0.15, rtol=0)


def test_known_values() -> None:
    """A change here changes every resumed run, so it must be intended."""
    x = generator(0, 1, seed=0, purpose="noise").uniform(2)
    assert x.tolist() == [[0.5563903450965881, 0.4778556227684021], [0.4125663638114929, 0.3573504090309143]]
