"""SPRINT: most tokens leave out the middle of the network, in training (arXiv 2510.21986)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rfdit.limits import Count, Fraction
from rfdit.randomness import SampleGenerator


class SPRINT:
    """One token of each group of side x side goes through the blocks of the model's path, `model.outer_blocks`.

    Behind it all tokens are W [e, g], e what they were before it, and g what came out of it, or a mask token m for
    those that did not go through. For some samples m is in the place of all of g, so that the network also knows to do
    without the path, as path-drop guidance does.

    side: side of the groups; 2 leaves out three quarters of the tokens, and 1 none, for the last steps of training.
    drop: probability with which a sample leaves out the whole path.
    Which tokens and samples these are depends on the seed and the sample's position in the stream alone.
    Raises ValueError for a model without such a path, and a side that does not divide the tokens' grid.
    """

    def __init__(self, *, side: Count = 2, drop: Fraction = 0.1) -> None:
        if side < 1:
            raise ValueError(f"routing.side={side} must be at least 1")
        if not 0 <= drop <= 1:
            raise ValueError(f"routing.drop={drop} must be a probability between 0 and 1")
        self.side, self.drop = side, drop

    def blocks(self, depth: int, path: tuple[int, int] | None) -> tuple[int, int]:
        """As of `Routing`."""
        if path is None:
            raise ValueError(
                "routing=sprint needs a model whose middle is joined with what comes before it; use model=dit with "
                "model.outer_blocks=2"
            )
        return path

    def kept(self, grid: tuple[int, int], *, generator: SampleGenerator) -> Int[Tensor, "b k"] | None:
        """As of `Routing`."""
        if self.side == 1:
            return None
        (rows, columns), side = grid, self.side
        if rows % side or columns % side:
            raise ValueError(f"routing.side={side} does not divide the {rows} x {columns} tokens of an image")
        u = generator.uniform(rows // side, columns // side)
        place = (u * side**2).long()  # of the token within its group
        row = side * torch.arange(rows // side, device=u.device)[:, None] + place // side
        column = side * torch.arange(columns // side, device=u.device) + place % side
        return (row * columns + column).flatten(1).sort(dim=1).values

    def left_out(self, *, generator: SampleGenerator) -> Bool[Tensor, "b"] | None:
        """As of `LeavesPathOut`."""
        return generator.uniform() < self.drop if self.drop else None
