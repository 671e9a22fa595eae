"""The positions of image tokens: vectors that are added, rotations of queries and keys, or both."""

from typing import Literal

from rfdit.model.layers.embeddings import PositionEmbedding
from rfdit.model.layers.rope import Order, RotaryPositions, even_axes

# sincos+rope is LightningDiT's and JiT's.
Positions = Literal["sincos", "learned", "rope", "sincos+rope"]


def make_positions(
    kind: Positions, *, grid: tuple[int, int], width: int, num_heads: int, theta: float, order: Order
) -> tuple[PositionEmbedding | None, RotaryPositions | None]:
    """The table that is added to the patches, and the rotations, each if `kind` has it.

    theta, order: of rotary positions, half of each head's numbers for rows and half for columns.
    Raises ValueError if the width of a head is not a multiple of 4 with rotary positions.
    """
    rotary = None
    if kind in ("rope", "sincos+rope"):
        rotary = RotaryPositions(axes=even_axes(width // num_heads, 2), theta=theta, order=order)
    if kind == "rope":
        return None, rotary
    table = PositionEmbedding(grid=grid, width=width, kind="learned" if kind == "learned" else "sincos")
    return table, rotary
