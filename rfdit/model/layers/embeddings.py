"""Latents, positions and times to vectors, and vectors back to latents."""

import math
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.batch import Latent, Time
from rfdit.device import without_autocast
from rfdit.images import parse_size
from rfdit.model.layers.resizing import Patches, resized_input, resized_positions
from rfdit.storage.lru import LRU

Positions = Literal["sincos", "learned"]
KEPT_GRIDS = 64  # position tables besides the model's own; aspect-ratio buckets make fewer


def sinusoid(t: Float[Tensor, "..."], width: int) -> Float[Tensor, "... {width}"]:
    """[cos, sin] of t at the frequencies 10000^(-i / (width / 2)), in float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
    angles = t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_positions(
    height: int, width: int, channels: int, *, top: float = 0.0, left: float = 0.0, step: float = 1.0
) -> Float[Tensor, "n {channels}"]:
    """2-D sin-cos positions of a grid, row by row: columns in the first half, rows in the second.

    Each half is [sin, cos] of the coordinate at the frequencies 10000^(-4 i / channels), in the order of
    MAE and DiT. Coordinates count from `top` and `left`, and grow by `step` from one token to the next.
    """
    frequencies = 10000 ** (-torch.arange(channels // 4, dtype=torch.float64) / (channels / 4))
    rows, columns = torch.meshgrid(torch.arange(height) + top, torch.arange(width) + left, indexing="ij")
    angles = (step * torch.stack([columns, rows]).flatten(1))[..., None] * frequencies  # (2, n, channels / 4)
    return rearrange(torch.cat([angles.sin(), angles.cos()], dim=-1), "two n c -> n (two c)").float()


def token_grid(input_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patches of a latent; raises ValueError if the patch does not divide it."""
    height, width = parse_size(input_size, setting="model.input_size")
    if height % patch_size or width % patch_size:
        size = str(height) if height == width else f"{height}x{width}"
        fitting = [p for p in (2, 4, 8) if height % p == 0 and width % p == 0]
        advice = f"; use {', '.join(map(str, fitting[:-1]))} or {fitting[-1]}" if len(fitting) > 1 else ""
        raise ValueError(f"model.patch_size={patch_size} does not divide the latent size {size}{advice}")
    return height // patch_size, width // patch_size


class PatchEmbedding(nn.Module):
    """Latents to tokens: one linear layer applied to every p x p patch, or two with a bottleneck between them.

    Shapes: (b, c, h, w) -> (b, h/p * w/p, width).

    bottleneck: numbers that the first of two layers, without bias, makes of a patch; None has one layer. Large
        patches of pixels have fewer degrees of freedom than numbers (JiT, arXiv 2511.13720, sec. 4.3).
    """

    def __init__(
        self, *, in_channels: int, patch_size: int, width: int, bottleneck: int | None = None
    ) -> None:
        super().__init__()
        self.patch_size, self.in_channels = patch_size, in_channels
        numbers = in_channels * patch_size**2
        self.reduce = None if bottleneck is None else nn.Linear(numbers, bottleneck, bias=False)
        self.proj = nn.Linear(bottleneck or numbers, width)

    @property
    def linears(self) -> list[nn.Linear]:
        """Its layers, none of which has a fan-in that grows with the width."""
        return [self.proj] if self.reduce is None else [self.reduce, self.proj]

    def forward(self, z: Latent) -> Float[Tensor, "b n d"]:
        p = self.patch_size
        patches = rearrange(z, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        return self.proj(patches if self.reduce is None else self.reduce(patches))

    def from_patches(self, weight: Tensor, patches: Patches) -> Tensor:
        """As of `ResizesPatches`; the bias does not depend on the patches."""
        own = Patches(self.patch_size, self.in_channels)
        return weight if weight.ndim == 1 else resized_input(weight, patches, own)


def unpatchify(tokens: Float[Tensor, "b n o"], grid: tuple[int, int], patch_size: int) -> Latent:
    """The numbers (p, q, c) of each token to pixels of a latent, float32: (b, n, p p c) -> (b, c, h, w)."""
    h, w = grid
    return rearrange(
        tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=patch_size, q=patch_size
    ).float()


@runtime_checkable
class HasGrid(Protocol):
    """A module of a backbone that is made for a grid of tokens. fixed_grid: it serves no other."""

    fixed_grid: bool


class PositionEmbedding(nn.Module):
    """One vector per token of the grid, frozen sin-cos (DiT) or learned: (rows, columns) -> (n, width).

    grid: (rows, columns) of tokens for which the model is configured; coordinates start at 0 there.

    Frozen positions serve any grid, learned ones only the grid on which they were trained. Another grid
    is centred on the configured one, as in SD3 for aspect-ratio buckets (arXiv 2403.03206, "Positional
    Encodings for Varying Aspect Ratios", without the factor 256/S for a change of resolution after
    pre-training): row i of h is at i + (rows - h) / 2, and columns likewise. The middle of an image, where
    its subject is, thus has the same position in every bucket. A wide or high grid exceeds the configured
    range by half on each of two sides instead of by all on one. Where the difference is odd, coordinates
    are halves.

    The latest KEPT_GRIDS tables of other grids are cached by (grid, device, dtype), outside the state
    dict. Raises ValueError for a width that is not a multiple of 4 with sin-cos, and for another grid
    with learned positions.
    """

    def __init__(self, *, grid: tuple[int, int], width: int, kind: Positions) -> None:
        super().__init__()
        if kind == "sincos" and width % 4:
            raise ValueError(
                f"model.width={width} is not a multiple of 4, which model.positions=sincos needs"
            )
        self.grid, self.width = grid, width
        self.fixed_grid = kind == "learned"
        self.table = nn.Parameter(sincos_positions(*grid, width), requires_grad=kind == "learned")
        self._other_grids: LRU[tuple[int, int, torch.device, torch.dtype], Tensor] = LRU(KEPT_GRIDS)

    def forward(self, height: int, width: int) -> Float[Tensor, "n d"]:
        if (height, width) == self.grid:
            return self.table
        if self.fixed_grid:
            raise ValueError(
                f"model.positions=learned knows the token grid {self.grid[0]}x{self.grid[1]}, "
                f"not {height}x{width}; use model.positions=sincos for other sizes"
            )
        key = (height, width, self.table.device, self.table.dtype)
        return self._other_grids.get_or_make(key, lambda: self._centred(height, width))

    def from_grid(self, table: Float[Tensor, "n d"], grid: tuple[int, int]) -> Float[Tensor, "m d"]:
        """As of `ResizesPositions`."""
        return resized_positions(table, grid, self.grid)

    # Validation may come first, and tensors made in inference mode cannot take part in training.
    @torch.inference_mode(False)
    def _centred(self, height: int, width: int) -> Float[Tensor, "n d"]:
        top, left = (self.grid[0] - height) / 2, (self.grid[1] - width) / 2
        positions = sincos_positions(height, width, self.width, top=top, left=left)
        return positions.to(device=self.table.device, dtype=self.table.dtype)


class CroppedPositions(nn.Module):
    """The middle of a frozen square of sin-cos positions, as in SD3: (rows, columns) -> (n, width).

    side: tokens along a side of the square. grid: that for which the model is configured; coordinates grow by
        its side over `side` from one token to the next.
    Raises ValueError for a grid that exceeds the square.
    """

    fixed_grid = False

    def __init__(self, *, grid: tuple[int, int], side: int, width: int) -> None:
        super().__init__()
        self.grid, self.side = grid, side
        square = sincos_positions(side, side, width, step=max(grid) / side)
        self.table = nn.Parameter(square, requires_grad=False)

    def forward(self, height: int, width: int) -> Float[Tensor, "n d"]:
        if max(height, width) > self.side:
            raise ValueError(
                f"model.positions_side={self.side} is less than the token grid {height}x{width}; "
                "use a smaller image"
            )
        top, left = (self.side - height) // 2, (self.side - width) // 2
        square = self.table.view(self.side, self.side, -1)
        return square[top : top + height, left : left + width].flatten(0, 1)


class PooledMLP(nn.Module):
    """The pooled caption through two linear layers with SiLU between, as in SD3 and FLUX: (b, p) -> (b, width)."""

    def __init__(self, *, pooled_width: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(pooled_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, pooled: Float[Tensor, "b p"]) -> Float[Tensor, "b d"]:
        return self.out(F.silu(self.hidden(pooled)))


class TimeEmbedding(nn.Module):
    """Times in [0, 1] to vectors: the sinusoid of `scale` t, then a two-layer SiLU MLP (DiT, sec. 3.2).

    durations: a second time is embedded likewise and added, the duration of a step.
    guidance: so is a number at 1000 times itself, the scale of guidance; this is the scale where none is given.
    The last layers of both begin at zero, so that a network starts as it is without them. starts_at_zero: so does the
        last layer of the time.

    Always float32, since neighbouring times differ by less than bf16 resolves.
    Shapes: (b,), and (b,) or None for durations of 0, and for the scale -> (b, width).
    Raises ValueError for durations, or a scale, in a network without them.
    """

    def __init__(
        self,
        *,
        width: int,
        frequencies: int = 256,
        scale: float = 1000.0,
        durations: bool = False,
        guidance: float | None = None,
        starts_at_zero: bool = False,
    ) -> None:
        super().__init__()
        self.frequencies, self.scale, self.starts_at_zero = frequencies, scale, starts_at_zero
        self.hidden = nn.Linear(frequencies, width)
        self.out = nn.Linear(width, width)
        self.duration = self.guidance = None
        if durations:
            self.duration = TimeEmbedding(
                width=width, frequencies=frequencies, scale=scale, starts_at_zero=True
            )
        if guidance is not None:
            self.guidance = TimeEmbedding(width=width, frequencies=frequencies, starts_at_zero=True)
        self.default_guidance = 0.0 if guidance is None else guidance

    @property
    def _added(self) -> "list[TimeEmbedding]":
        return [embedding for embedding in (self.duration, self.guidance) if embedding is not None]

    @property
    def linears(self) -> list[nn.Linear]:
        """Its layers, drawn from N(0, 0.02) but for those that begin at zero."""
        return [self.hidden, self.out, *(layer for each in self._added for layer in each.linears)]

    @property
    def inputs(self) -> list[nn.Linear]:
        """Those whose fan-in does not grow with the width."""
        return [self.hidden, *(layer for each in self._added for layer in each.inputs)]

    @property
    def zero(self) -> list[nn.Linear]:
        """Those that begin at zero."""
        own = [self.out] if self.starts_at_zero else []
        return [*own, *(layer for each in self._added for layer in each.zero)]

    def forward(
        self, t: Time, duration: Time | None = None, guidance: Float[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d"]:
        with without_autocast(t):
            emb = sinusoid(self.scale * t, self.frequencies).to(self.hidden.weight.dtype)
            y = self.out(F.silu(self.hidden(emb)))
        if self.duration is not None:
            y = y + self.duration(torch.zeros_like(t) if duration is None else duration)
        elif duration is not None:
            raise ValueError(
                "model.durations=false has velocities at single times only; use model.durations=true"
            )
        if self.guidance is not None:
            default = torch.full_like(t, self.default_guidance) if guidance is None else guidance
            y = y + self.guidance(default)
        elif guidance is not None:
            raise ValueError("model.guidance=null does not take the scale of guidance; give model.guidance=3")
        return y
