"""adaLN-Zero (arXiv 2212.09748, sec. 3.2): norms and gates whose vectors come from the condition.

    h = norm(x) (1 + scale) + shift        norm: LayerNorm or RMSNorm without weights, eps 1e-6
    x' = x + gate f(h)                     f: attention or MLP

Every vector of a forward pass comes from one matrix product, `ModulationTable`. Its weights start at
zero, so that at first every gate is closed and every block is the identity.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.model.layers.adaln_operators import AdaLN, GatedAdaLN, has_kernels
from rfdit.model.layers.norms import TokenNorm, Tokens, layer_norm

Vector = Float[Tensor, "b d"]  # one for each sample
Vectors = Float[Tensor, "b k d"]  # k for each sample
AdaLNKind = Literal["zero", "plain", "single"]


class Modulation(NamedTuple):
    """The vectors of one half of a block, attention or MLP."""

    shift: Vector | None
    scale: Vector
    gate: Vector | None


class Layout(NamedTuple):
    """The vectors that a half of a block has beside its scale, in the order shift, scale, gate."""

    shifts: bool = True
    gates: bool = True

    @classmethod
    def of(cls, kind: AdaLNKind, *, shifts: bool) -> "Layout":
        """That of a kind of adaLN: the plain one has no gates."""
        return cls(shifts, gates=kind != "plain")

    @property
    def per_half(self) -> int:
        """The number of vectors of half a block."""
        return 1 + self.shifts + self.gates

    @property
    def per_block(self) -> int:
        """The number of vectors of a block."""
        return 2 * self.per_half

    @property
    def ungated(self) -> "Layout":
        """The same without gates."""
        return Layout(self.shifts, gates=False)

    def half(self, vectors: Sequence[Vector]) -> Modulation:
        """Names the vectors of one half."""
        shift = vectors[0] if self.shifts else None
        gate = vectors[-1] if self.gates else None
        return Modulation(shift, vectors[int(self.shifts)], gate)

    def halves(self, vectors: Vectors) -> tuple[Modulation, Modulation]:
        """A block's vectors for its attention and for its MLP."""
        each = vectors.unbind(1)
        return self.half(each[: len(each) // 2]), self.half(each[len(each) // 2 :])


class ModulationTable(nn.Module):
    """Condition vectors to every adaLN vector of a forward pass: linear(silu(y)).

    counts: the number of vectors that each consumer takes, in order.
    Shapes: (b, d) -> tuple of (b, count, d), float32.
    """

    def __init__(self, *, width: int, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = tuple(counts)
        self.linear = nn.Linear(width, sum(counts) * width)

    def forward(self, y: Vector) -> tuple[Vectors, ...]:
        vectors = rearrange(self.linear(F.silu(y)).float(), "b (k d) -> b k d", k=sum(self.counts))
        return vectors.split(self.counts, dim=1)


class SharedModulation(nn.Module):
    """adaLN-single (PixArt-alpha, arXiv 2310.00426, sec. 2.3): one table for all blocks, and biases of each.

    Block i takes linear(silu(y)) + bias_i, and the last layer, the last of `counts`, y + bias. A block with
    fewer vectors than others takes the first. The biases start at zero, as the linear layer does.
    Shapes: (b, d) -> tuple of (b, count, d), float32.
    """

    def __init__(self, *, width: int, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = tuple(counts)
        self.linear = nn.Linear(width, max(counts) * width)
        self.bias = nn.Parameter(torch.zeros(sum(counts), width))

    def forward(self, y: Vector) -> tuple[Vectors, ...]:
        shared = rearrange(self.linear(F.silu(y)).float(), "b (k d) -> b k d", k=max(self.counts))
        *blocks, final = self.bias.float().split(self.counts)
        return *(shared[:, : len(bias)] + bias for bias in blocks), y[:, None].float() + final


def make_modulation(
    kind: AdaLNKind, *, width: int, counts: Sequence[int]
) -> ModulationTable | SharedModulation:
    """The modulation of a kind of adaLN: a table of its own for each block, or one for all (single)."""
    return (SharedModulation if kind == "single" else ModulationTable)(width=width, counts=counts)


def modulated_norm(x: Tokens, shift: Vector | None, scale: Vector, norm: TokenNorm = layer_norm) -> Tokens:
    """norm(x) (1 + scale) + shift, in float32."""
    normed = norm(x)
    if shift is None:
        return normed * (1 + scale[:, None])
    return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])


def adaln(
    x: Tokens, shift: Vector | None, scale: Vector, norm: TokenNorm = layer_norm
) -> tuple[Tokens, Tokens]:
    """x and h = norm(x) (1 + scale) + shift.

    Continue with the x that is returned, so that on GPUs its two gradients meet in one kernel. The kernels
    are those of LayerNorm with shifts.
    """
    if shift is not None and norm is layer_norm and has_kernels(x):
        return AdaLN.apply(x, shift, scale)
    return x, modulated_norm(x, shift, scale, norm)


def gated(x: Tokens, gate: Vector | None, y: Tokens) -> Tokens:
    """x + gate y, or x + y without a gate."""
    return x + y if gate is None else x + gate[:, None] * y


def gated_adaln(
    x: Tokens,
    gate: Vector | None,
    y: Tokens,
    shift: Vector | None,
    scale: Vector,
    norm: TokenNorm = layer_norm,
) -> tuple[Tokens, Tokens]:
    """x' = x + gate y and h = norm(x') (1 + scale) + shift: one kernel on GPUs, as in `adaln`."""
    if gate is not None and shift is not None and norm is layer_norm and has_kernels(x):
        return GatedAdaLN.apply(x, y, gate, shift, scale)
    x = gated(x, gate, y)
    return x, modulated_norm(x, shift, scale, norm)
