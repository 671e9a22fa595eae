"""What every velocity network shares: patches in and out, modulation, initialisation."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.batch import Latent


def token_grid(input_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of a latent; raises if the patch does not divide it."""
    height, width = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if height % patch_size or width % patch_size:
        size = str(height) if height == width else f"{height}x{width}"
        fitting = [p for p in (2, 4, 8) if height % p == 0 and width % p == 0]
        wanted = f"; use {', '.join(map(str, fitting[:-1]))} or {fitting[-1]}" if len(fitting) > 1 else ""
        raise ValueError(f"model.patch_size={patch_size} does not divide the latent size {size}{wanted}")
    return height // patch_size, width // patch_size


def check_heads(width: int, num_heads: int) -> None:
    """Raises unless the heads share the width evenly."""
    if width % num_heads:
        raise ValueError(f"model.num_heads={num_heads} does not divide model.width={width}")


def unpatchify(tokens: Float[Tensor, "b n o"], grid: tuple[int, int], patch_size: int) -> Latent:
    """Each token's (p, q, c) numbers back to their place: (b, n, p p c) -> (b, c, h, w)."""
    h, w = grid
    return rearrange(
        tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=patch_size, q=patch_size
    ).float()


class ModulationTable(nn.Module):
    """Every adaLN vector of a forward pass, from one matrix product.

    counts: how many vectors each consumer takes, in order. Zero-initialised, so that every block
    starts as the identity (adaLN-Zero). Shapes: (b, d) -> tuple of (b, count, d), float32.
    """

    def __init__(self, *, width: int, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = tuple(counts)
        self.linear = nn.Linear(width, sum(counts) * width)

    def forward(self, y: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b _ d"], ...]:
        vectors = rearrange(self.linear(F.silu(y)).float(), "b (k d) -> b k d", k=sum(self.counts))
        return vectors.split(self.counts, dim=1)


def initialize(
    backbone: nn.Module,
    *,
    zero: Sequence[nn.Linear],
    normal: Sequence[nn.Linear],
    inputs: Sequence[nn.Linear],
    width: int,
    base_width: int | None,
) -> None:
    """DiT's initialisation: xavier-uniform linears, N(0, 0.02) time MLP, zero modulation and output.

    inputs: layers whose fan-in does not grow with the width.
    base_width: initialise for muP (arXiv 2203.03466, table 3): as DiT at this width; at another, what
        comes from the `inputs` is of the same size, and other weights have variance 1 / fan-in.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if module in inputs and base_width is not None:
                fan_in = module.in_features
                with torch.no_grad():
                    module.weight.mul_(math.sqrt((fan_in + width) / (fan_in + base_width)))
    for linear in normal:
        shrink = 1.0 if base_width is None or linear in inputs else math.sqrt(base_width / width)
        nn.init.normal_(linear.weight, std=0.02 * shrink)
    for linear in zero:
        nn.init.zeros_(linear.weight)


def round_weights(backbone: nn.Module, dtype: torch.dtype) -> None:
    """The linear layers of blocks and modulations in `dtype`, for sampling under autocast.

    Autocast rounds weights that need no gradient at every call; rounded once, they give the same bits.
    """
    rounded = [backbone.get_submodule("blocks")]
    rounded += [module for module in backbone.modules() if isinstance(module, ModulationTable)]
    for part in rounded:
        for module in part.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)


def compile_blocks(backbone: nn.Module) -> None:
    """torch.compile of each block: as fast as compiling the whole, and compiled once for all blocks."""
    blocks = backbone.get_submodule("blocks")
    for block in blocks.children():
        block.compile()
