"""SPRINT's choice of tokens and samples."""

import pytest
import torch

from rfdit.objective import SPRINT
from rfdit.randomness import SampleGenerator


def generator(*keys: int) -> SampleGenerator:
    return SampleGenerator(seed=3, keys=torch.tensor(keys))


@pytest.mark.parametrize(("side", "grid"), [(2, (4, 6)), (3, (6, 3))])
def test_one_token_of_each_group_is_kept(side: int, grid: tuple[int, int]) -> None:
    kept = SPRINT(side=side).kept(grid, generator=generator(*range(20)))
    assert kept is not None
    assert (kept.diff(dim=1) > 0).all()
    rows, columns = kept // grid[1] // side, kept % grid[1] // side
    groups = (rows * (grid[1] // side) + columns).sort(dim=1).values
    assert torch.equal(groups, torch.arange(grid[0] * grid[1] // side**2).expand(20, -1))


def test_every_token_of_a_group_is_as_likely() -> None:
    kept = SPRINT().kept((2, 4), generator=generator(*range(4000)))
    assert kept is not None
    assert kept.flatten().bincount(minlength=8) / 4000 == pytest.approx([0.25] * 8, abs=0.03)


def test_the_choice_is_the_samples_own() -> None:
    whole, part = (SPRINT().kept((8, 8), generator=generator(*keys)) for keys in ((4, 5, 6, 7), (6, 4)))
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[[2, 0]])
    assert not torch.equal(whole[0], whole[1])


def test_some_samples_are_without_the_path() -> None:
    left_out = SPRINT(drop=0.1).left_out(generator=generator(*range(4000)))
    assert left_out is not None
    assert left_out.float().mean() == pytest.approx(0.1, abs=0.02)
    assert SPRINT(drop=0.0).left_out(generator=generator(1, 2)) is None


def test_the_last_steps_keep_all_tokens() -> None:
    assert SPRINT(side=1).kept((3, 5), generator=generator(1, 2)) is None


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"routing\.side=2 does not divide the 4 x 5 tokens of an image"):
        SPRINT().kept((4, 5), generator=generator(1))
    with pytest.raises(ValueError, match=r"use model=dit with model\.outer_blocks=2"):
        SPRINT().blocks(12, None)
    with pytest.raises(ValueError, match=r"routing\.drop=1\.5 must be a probability"):
        SPRINT(drop=1.5)
    assert SPRINT().blocks(12, (3, 10)) == (3, 10)
