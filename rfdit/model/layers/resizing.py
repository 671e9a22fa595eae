"""Weights that were trained on another grid of tokens or for other patches, made to fit a network's own.

A module says what it can do by `ResizesPositions` or `ResizesPatches`; the formulas are here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """The patches of a network: their side in latent pixels, and the channels of a pixel."""

    size: int
    channels: int


@runtime_checkable
class ResizesPositions(Protocol):
    """A module with one vector per token of a grid. fixed_grid: they are learned, not computed."""

    fixed_grid: bool

    def from_grid(self, table: Float[Tensor, "n d"], grid: tuple[int, int]) -> Float[Tensor, "m d"]:
        """The vectors of another grid (rows, columns), on its own."""
        ...


@runtime_checkable
class ResizesPatches(Protocol):
    """A module that reads or writes patches."""

    def from_patches(self, weight: Tensor, patches: Patches) -> Tensor:
        """The weight or bias of such a module with other patches, for its own."""
        ...


def resized_positions(
    table: Float[Tensor, "n d"], grid: tuple[int, int], own: tuple[int, int]
) -> Float[Tensor, "m d"]:
    """Learned positions of one grid on another, by bicubic interpolation, as for vision transformers.

    Both grids cover the same image.
    """
    image = rearrange(table, "(h w) d -> 1 d h w", h=grid[0])
    smaller = own[0] < grid[0] or own[1] < grid[1]
    image = F.interpolate(image.float(), size=own, mode="bicubic", antialias=smaller)
    return rearrange(image, "1 d h w -> (h w) d")


def enlargement(size: int, own: int) -> Float[Tensor, "own2 size2"]:
    """The matrix that resizes a patch of `size` x `size` pixels to `own` x `own`, bilinearly; rows are new pixels."""
    pixels = torch.eye(size**2, dtype=torch.float64).reshape(size**2, 1, size, size)
    resized = F.interpolate(pixels, size=(own, own), mode="bilinear", antialias=own < size)
    return resized.reshape(size**2, own**2).T


def resized_input(weight: Float[Tensor, "d cpp"], patches: Patches, own: Patches) -> Float[Tensor, "d kqq"]:
    """The weight of a patch embedding, whose columns are (c p q), for other patches.

    For larger patches it gives an enlarged patch the same token: with B the `enlargement` of a patch,
    w' = (B^+)^T w, so that w' . B x = w . x (FlexiViT, arXiv 2212.08013, sec. 3.4). New channels start at zero.
    """
    resize = torch.linalg.pinv(enlargement(patches.size, own.size)).T
    pixels = rearrange(weight.double(), "d (c n) -> d c n", c=patches.channels) @ resize.T
    return rearrange(_channels(pixels, own.channels, axis=1), "d c n -> d (c n)").to(weight.dtype)


def resized_output(
    weight: Float[Tensor, "ppc ..."], patches: Patches, own: Patches
) -> Float[Tensor, "qqk ..."]:
    """The weight or bias of an output layer, whose rows are (p q c), for other patches: its patches are resized.

    w' = B w with B of `enlargement`. New channels start at zero.
    """
    rows = rearrange(weight.double(), "(n c) ... -> n c ...", c=patches.channels)
    pixels = torch.tensordot(enlargement(patches.size, own.size), rows, dims=1)
    return rearrange(_channels(pixels, own.channels, axis=1), "n c ... -> (n c) ...").to(weight.dtype)


def _channels(pixels: Tensor, count: int, *, axis: int) -> Tensor:
    """The first `count` channels, with zeros after the last one."""
    kept = pixels.narrow(axis, 0, min(count, pixels.shape[axis]))
    shape: Sequence[int] = [count - kept.shape[axis] if i == axis else n for i, n in enumerate(kept.shape)]
    return torch.cat([kept, kept.new_zeros(shape)], dim=axis)
