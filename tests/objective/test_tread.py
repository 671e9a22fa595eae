"""TREAD's choice of tokens and blocks."""

import pytest
import torch

from rfdit.objective import TREAD
from rfdit.randomness import SampleGenerator


def generator(*keys: int) -> SampleGenerator:
    return SampleGenerator(seed=3, keys=torch.tensor(keys))


@pytest.mark.parametrize(
    ("rate", "tokens", "count"), [(0.5, 16, 8), (0.5, 7, 4), (0.7, 10, 3), (0.99, 10, 1)]
)
def test_a_share_of_the_tokens_is_kept(rate: float, tokens: int, count: int) -> None:
    """ceil((1 - rate) tokens) of each sample, in order, none of them twice."""
    kept = TREAD(rate=rate).kept((1, tokens), generator=generator(*range(50)))
    assert kept is not None
    assert kept.shape == (50, count)
    assert (kept.diff(dim=1) > 0).all()
    assert kept.min() >= 0
    assert kept.max() < tokens


def test_nothing_is_drawn_at_rate_0() -> None:
    assert TREAD(rate=0.0).kept((4, 4), generator=generator(1, 2)) is None


def test_the_choice_is_the_samples_own() -> None:
    """It depends on a sample's position alone, not on its batch."""
    whole = TREAD().kept((8, 8), generator=generator(4, 5, 6, 7))
    part = TREAD().kept((8, 8), generator=generator(6, 4))
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[[2, 0]])
    assert not torch.equal(whole[0], whole[1])


def test_every_token_is_as_likely() -> None:
    kept = TREAD().kept((4, 4), generator=generator(*range(4000)))
    assert kept is not None
    assert kept.flatten().bincount(minlength=16) / 4000 == pytest.approx([0.5] * 16, abs=0.04)


@pytest.mark.parametrize(("depth", "blocks"), [(12, (3, 9)), (28, (3, 25)), (4, (3, 3))])
def test_the_blocks_are_those_of_the_paper(depth: int, blocks: tuple[int, int]) -> None:
    assert TREAD().blocks(depth, None) == blocks


@pytest.mark.parametrize(("first", "last"), [(3, 5), (3, 2), (5, None)])
def test_blocks_that_there_are_not(first: int, last: int | None) -> None:
    with pytest.raises(
        ValueError, match=rf"routing\.first={first}, routing\.last={last} must be blocks of the"
    ):
        TREAD(first=first, last=last).blocks(4, None)


def test_a_joined_path_is_not_its_own() -> None:
    with pytest.raises(ValueError, match=r"model\.outer_blocks joins the blocks from 3 to 10"):
        TREAD().blocks(12, (3, 10))
