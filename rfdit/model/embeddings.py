"""How latents, positions and times become vectors."""

import math
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.batch import Latent, Time

Positions = Literal["sincos", "learned"]
KEPT_GRIDS = 64  # tables of positions beside a model's own: more than aspect-ratio buckets make


def sinusoid(t: Float[Tensor, "..."], width: int) -> Float[Tensor, "... {width}"]:
    """[cos, sin] of t at the frequencies 10000^(-i / (width / 2)), in float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
    angles = t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_positions(
    height: int, width: int, channels: int, *, top: float = 0.0, left: float = 0.0
) -> Float[Tensor, "n {channels}"]:
    """Frozen 2-D positions of a grid, row by row: columns in the first half, rows in the second.

    Each half is [sin, cos] of the coordinate, in MAE's and DiT's order. Coordinates count from
    `top` and `left`.
    """
    frequencies = 10000 ** (-torch.arange(channels // 4, dtype=torch.float64) / (channels / 4))
    rows, columns = torch.meshgrid(torch.arange(height) + top, torch.arange(width) + left, indexing="ij")
    angles = torch.stack([columns, rows]).flatten(1)[..., None] * frequencies  # (2, n, channels / 4)
    return rearrange(torch.cat([angles.sin(), angles.cos()], dim=-1), "two n c -> n (two c)").float()


class PatchEmbedding(nn.Module):
    """Latents to tokens: every p x p patch through one linear layer.

    Shapes: (b, c, h, w) -> (b, h/p * w/p, width).
    """

    def __init__(self, *, in_channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(in_channels * patch_size**2, width)

    def forward(self, z: Latent) -> Float[Tensor, "b n d"]:
        p = self.patch_size
        return self.proj(rearrange(z, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))


class PositionEmbedding(nn.Module):
    """One vector per token of the grid, frozen sin-cos (DiT) or learned.

    grid: (rows, columns) of tokens that the model is configured for; coordinates start at 0 there.

    Frozen positions serve any grid; learned ones only the grid they were trained on. Another grid is
    centred on the configured one, as SD3 does for aspect-ratio buckets (arXiv 2403.03206, "Positional
    Encodings for Varying Aspect Ratios"; their factor 256/S, for a change of resolution after
    pre-training, is left out): row i of h is at i + (grid's rows - h) / 2, and columns likewise. So the
    middle of a picture, where its subject is and where it was cropped, has one position in every
    bucket, and a wide or high grid leaves the configured range by half as much on two sides, instead of
    by all of it on one. Where the difference is odd, coordinates are halves.

    Tables of other grids are made once for each (grid, device, dtype) and kept outside the state dict,
    the latest KEPT_GRIDS of them. Raises ValueError for a width that sin-cos cannot fill, and for
    another grid when positions are learned.
    """

    def __init__(self, *, grid: tuple[int, int], width: int, kind: Positions) -> None:
        super().__init__()
        if kind == "sincos" and width % 4:
            raise ValueError(f"model.width={width} is no multiple of 4, which model.positions=sincos needs")
        self.grid, self.width, self.kind = grid, width, kind
        self.table = nn.Parameter(sincos_positions(*grid, width), requires_grad=kind == "learned")
        self._other_grids: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def forward(self, height: int, width: int) -> Float[Tensor, "n d"]:
        if (height, width) == self.grid:
            return self.table
        if self.kind == "learned":
            raise ValueError(
                f"model.positions=learned knows the token grid {self.grid[0]}x{self.grid[1]}, "
                f"not {height}x{width}; use model.positions=sincos for other sizes"
            )
        key = (height, width, self.table.device, self.table.dtype)
        if key not in self._other_grids:
            if len(self._other_grids) == KEPT_GRIDS:
                del self._other_grids[next(iter(self._other_grids))]
            self._other_grids[key] = self._centred(height, width)
        return self._other_grids[key]

    # Validation may ask first, and what is made in inference mode cannot be trained with.
    @torch.inference_mode(False)
    def _centred(self, height: int, width: int) -> Float[Tensor, "n d"]:
        top, left = (self.grid[0] - height) / 2, (self.grid[1] - width) / 2
        positions = sincos_positions(height, width, self.width, top=top, left=left)
        return positions.to(device=self.table.device, dtype=self.table.dtype)


class TimeEmbedding(nn.Module):
    """Time in [0, 1] to a vector: the sinusoid of 1000 t, then a two-layer SiLU MLP (DiT, sec. 3.2).

    Always float32: neighbouring times differ by less than bf16 resolves.
    scale: in place of 1000.
    """

    def __init__(self, *, width: int, frequencies: int = 256, scale: float = 1000.0) -> None:
        super().__init__()
        self.frequencies, self.scale = frequencies, scale
        self.hidden = nn.Linear(frequencies, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Time) -> Float[Tensor, "b d"]:
        # Meta tensors, on which costs are counted, have no autocast to switch off.
        with nullcontext() if t.is_meta else torch.autocast(t.device.type, enabled=False):
            emb = sinusoid(self.scale * t, self.frequencies).to(self.hidden.weight.dtype)
            return self.out(F.silu(self.hidden(emb)))
