"""Rotary positions along any number of axes (arXiv 2104.09864; along rows and columns, arXiv 2403.13298).

A head is cut into pairs of numbers, and each pair (a, b) of a query or key is turned by an angle that is its
token's coordinate p along one axis times the pair's frequency:

    (a, b) -> (a cos - b sin, a sin + b cos),    angle = p theta^(-2 i / m)

for the i-th pair of an axis of m numbers. A score then depends on differences of coordinates alone. The
pairs of the first axis come first. Two conventions exist, and exchanging them is silently wrong:

    interleaved   pair j is the numbers 2 j and 2 j + 1 of a head (FLUX, LightningDiT, JiT)
    halves        pair j is the numbers j and j + half a head (LLaMA, DINOv3)

Tables and rotation are float32, as bf16 resolves no neighbours among the larger angles.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rfdit.model.layers.attention import Heads
from rfdit.model.layers.embeddings import KEPT_GRIDS
from rfdit.storage.lru import LRU

Order = Literal["interleaved", "halves"]


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, one for each pair of a head, float32.

    The same for all samples, (n, pairs), or for each its own, (b, 1, k, pairs).
    """

    cos: Float[Tensor, "*b n pairs"]
    sin: Float[Tensor, "*b n pairs"]
    order: Order

    def __call__(self, x: Heads) -> Heads:
        """Queries or keys turned, (b, heads, n, head)."""
        pairs = (-1, 2) if self.order == "interleaved" else (2, -1)
        axis = -1 if self.order == "interleaved" else -2
        a, b = x.float().unflatten(-1, pairs).unbind(axis)  # (b, heads, n, head / 2)
        turned = torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], dim=axis)
        return turned.flatten(-2).to(x.dtype)

    def of(self, numbers: Int[Tensor, "b k"]) -> "Rotation":
        """The rotation of tokens by their numbers, for each sample its own."""
        return Rotation(self.cos[numbers][:, None], self.sin[numbers][:, None], self.order)

    def then(self, other: "Rotation") -> "Rotation":
        """The rotation of these tokens followed by others."""
        return Rotation(torch.cat([self.cos, other.cos]), torch.cat([self.sin, other.sin]), self.order)

    def then_unturned(self, n: int) -> "Rotation":
        """The rotation of these tokens followed by n that are not turned."""
        pairs = self.cos.shape[1]
        return self.then(Rotation(self.cos.new_ones(n, pairs), self.sin.new_zeros(n, pairs), self.order))


def rotation_at(
    coordinates: Float[Tensor, "n axes"], *, axes: Sequence[int], theta: float, order: Order
) -> Rotation:
    """The rotation of tokens at coordinates. axes: the numbers of a head that each axis turns, even."""
    angles = [
        p[:, None] * theta ** (-torch.arange(0, m, 2, dtype=torch.float64, device=p.device) / m)
        for p, m in zip(coordinates.double().unbind(1), axes, strict=True)
    ]
    joined = torch.cat(angles, dim=1)
    return Rotation(joined.cos().float(), joined.sin().float(), order)


def even_axes(head: int, count: int, *, setting: str = "model.positions=rope") -> tuple[int, ...]:
    """The numbers of a head for each of so many axes, equally many; raises ValueError if that does not come out."""
    if head % (2 * count):
        raise ValueError(
            f"{setting} needs heads whose width is a multiple of {2 * count}, "
            f"and model.width / model.num_heads is {head}"
        )
    return (head // count,) * count


class RotaryPositions(nn.Module):
    """Rotations of grids of tokens, row by row, with coordinates from 0 along every axis; without weights.

    axes: the numbers of a head that each axis turns, even, with the head's width as their sum.
    The latest KEPT_GRIDS rotations are cached by (sizes, device).
    """

    def __init__(self, *, axes: Sequence[int], theta: float = 10000.0, order: Order = "interleaved") -> None:
        super().__init__()
        self.axes, self.theta, self.order = tuple(axes), theta, order
        self._grids: LRU[tuple[tuple[int, ...], torch.device], Rotation] = LRU(KEPT_GRIDS)

    def forward(self, *sizes: int, device: torch.device) -> Rotation:
        """sizes: tokens along each axis; along an axis of one token all coordinates are 0."""
        return self._grids.get_or_make((sizes, device), lambda: self._made(sizes, device))

    # As for `PositionEmbedding`: validation may come first, in inference mode.
    @torch.inference_mode(False)
    def _made(self, sizes: tuple[int, ...], device: torch.device) -> Rotation:
        grid = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
        coordinates = torch.stack([axis.flatten() for axis in grid], dim=1).float()
        made = rotation_at(coordinates, axes=self.axes, theta=self.theta, order=self.order)
        return Rotation(made.cos.to(device), made.sin.to(device), self.order)
