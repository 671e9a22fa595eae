"""TREAD: tokens that pass the middle of the network by, in training (arXiv 2501.04765)."""

import math

from jaxtyping import Int
from torch import Tensor

from rfdit.limits import BelowOne, Count
from rfdit.randomness import SampleGenerator

AFTER = 3  # blocks after the last one, if it is not given
SMALL = 1e-9  # a product that float64 has rounded up from a whole number is that number all the same


class TREAD:
    """Blocks `first` to `last` see tokens drawn at random, 1 - rate of a sample's; the others go from the block before
    to the block behind unchanged.

    rate: share of the tokens that pass by. first, last: numbers of blocks, from 1. last=None leaves three blocks behind
        it, as in the paper (3 to 9 of 12, 3 to 25 of 28), and is at least `first`.
    Which tokens these are depends on the seed and the sample's position in the stream alone.
    Raises ValueError for a rate outside of [0, 1).
    """

    def __init__(self, *, rate: BelowOne = 0.5, first: Count = 3, last: Count | None = None) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"routing.rate={rate} must lie between 0 and 1, without 1")
        self.rate, self.first, self.last = rate, first, last

    def blocks(self, depth: int, path: tuple[int, int] | None) -> tuple[int, int]:
        """As of `Routing`."""
        if path is not None:
            raise ValueError(
                f"model.outer_blocks joins the blocks from {path[0]} to {path[1]} with what comes before them, and "
                "routing=tread takes tokens past blocks of its own; use model.outer_blocks=null or routing=sprint"
            )
        last = max(self.first, depth - AFTER) if self.last is None else self.last
        if not self.first <= last <= depth:
            raise ValueError(
                f"routing.first={self.first}, routing.last={self.last} must be blocks of the model's {depth}, in this "
                "order"
            )
        return self.first, last

    def kept(self, grid: tuple[int, int], *, generator: SampleGenerator) -> Int[Tensor, "b k"] | None:
        """As of `Routing`: at least one of each sample."""
        tokens = math.prod(grid)
        count = max(1, math.ceil((1 - self.rate) * tokens - SMALL))
        if count == tokens:
            return None
        drawn = generator.uniform(tokens).argsort(dim=1, stable=True)[:, :count]
        return drawn.sort(dim=1).values
