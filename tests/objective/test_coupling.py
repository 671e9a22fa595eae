"""Minibatch optimal transport: a permutation, the best one, and shorter paths."""

import warnings
from itertools import permutations

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.objective import IndependentCoupling, OptimalTransportCoupling
from rfdit.randomness import SampleGenerator


def alike(n: int) -> Condition:
    """Equal conditions."""
    return Condition(pooled=torch.zeros(n, 1))


def latents(n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 2, 2, generator=generator) * 2 + 1, torch.randn(n, 2, 2, 2, generator=generator)


class Drawn(SampleGenerator):
    """Draws this noise, whatever for."""

    def __init__(self, z1: Tensor) -> None:
        super().__init__(seed=0, keys=torch.arange(len(z1)))
        self.z1 = z1

    def fork(self, purpose: str) -> SampleGenerator:
        return self

    def normal(self, *shape: int) -> Tensor:
        return self.z1


def transported(z0: Tensor, z1: Tensor, cond: Condition) -> Tensor:
    return OptimalTransportCoupling()(z0, cond, generator=Drawn(z1))


def squared_distance(z0: Tensor, z1: Tensor) -> float:
    return (z0 - z1).square().sum().item()


def test_independent_changes_nothing() -> None:
    z0, z1 = latents(4, seed=0)
    assert IndependentCoupling()(z0, alike(4), generator=Drawn(z1)) is z1


def test_the_noise_is_permuted_and_nothing_else() -> None:
    z0, z1 = latents(16, seed=0)
    paired = transported(z0, z1, alike(16))
    assert sorted(row.tolist() for row in paired.flatten(1)) == sorted(row.tolist() for row in z1.flatten(1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_no_other_pairing_is_shorter(n: int, seed: int) -> None:
    z0, z1 = latents(n, seed=seed)
    best = min(squared_distance(z0, z1[list(order)]) for order in permutations(range(n)))
    assert squared_distance(z0, transported(z0, z1, alike(n))) == pytest.approx(best, rel=1e-5)


def test_paths_get_shorter() -> None:
    z0, z1 = latents(64, seed=0)
    before, after = (
        squared_distance(z0, z1),
        squared_distance(z0, transported(z0, z1, alike(64))),
    )
    assert after < 0.8 * before


def test_the_rows_of_the_data_stay_where_they_are() -> None:
    """Pairs are made by moving the noise: row i still belongs to condition i."""
    z0 = torch.arange(5.0)[:, None, None, None] * 10
    z1 = z0.flip(0) + 0.1
    torch.testing.assert_close(transported(z0, z1, alike(5)), z0 + 0.1)


@pytest.mark.parametrize(
    "cond",
    [
        Condition(pooled=torch.tensor([0.0, 1, 0, 1, 0])[:, None]),
        Condition(
            pooled=torch.zeros(5, 1), tokens=torch.tensor([0.0, 1, 0, 1, 0])[:, None, None].expand(5, 3, 2)
        ),
    ],
    ids=["pooled", "tokens"],
)
def test_noise_goes_only_to_equal_conditions(cond: Condition) -> None:
    """Within each of the two conditions the best pairing, as if there were no other."""
    z0, z1 = latents(5, seed=1)
    paired = transported(z0, z1, cond)
    for rows in ([0, 2, 4], [1, 3]):
        alone = transported(z0[rows], z1[rows], alike(len(rows)))
        torch.testing.assert_close(paired[rows], alone)


def test_a_batch_of_different_conditions_warns_once() -> None:
    z0, z1 = latents(4, seed=0)
    coupling, cond = OptimalTransportCoupling(), Condition(pooled=torch.arange(4.0)[:, None])
    with pytest.warns(UserWarning, match="coupling=optimal_transport: the 4 samples of a batch have as many"):
        assert torch.equal(coupling(z0, cond, generator=Drawn(z1)), z1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coupling(z0, cond, generator=Drawn(z1))
