"""FLUX: double-stream blocks, then single-stream blocks, with rotary positions (black-forest-labs/flux, 2024)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rfdit.batch import Condition, Latent, Time
from rfdit.limits import Count, NotNegative, Positive, Size
from rfdit.model.blocks import FinalLayer, MMDiTBlock
from rfdit.model.layers.adaln import ModulationTable
from rfdit.model.layers.attention import Attention, FusedAttention
from rfdit.model.layers.embeddings import PatchEmbedding, PooledMLP, TimeEmbedding, token_grid
from rfdit.model.layers.initialization import initialize
from rfdit.model.layers.recompute import Recompute
from rfdit.model.layers.rope import RotaryPositions
from rfdit.model.single_stream import SingleStreamBlock

NEEDS_CAPTIONS = "model=flux attends to caption tokens; use conditioner=text, or model=dit"


def flux_axes(head: int) -> tuple[int, int, int]:
    """The numbers of a head that turn by the first axis, rows and columns, in FLUX's proportions 16, 56, 56 of 128.

    Raises ValueError for a head that is not even or less than 8 wide.
    """
    if head % 2 or head < 8:
        raise ValueError(
            f"model=flux needs heads of an even width of at least 8, and model.width / model.num_heads is {head}"
        )
    side = 2 * (7 * head // 32)
    return head - 2 * side, side, side


class Flux(nn.Module):
    """The velocity network of FLUX.1.

    Shapes: z_t (b, c, h, w), t (b,), cond.pooled (b, p), cond.tokens (b, l, token_width)
    -> velocity (b, c, h, w), float32.

    `depth` blocks in which image and caption tokens have weights of their own (`MMDiTBlock`), then
    `single_depth` in which they are one sequence (`SingleStreamBlock`). Queries and keys have RMSNorm. Image
    tokens are at (0, row, column), caption tokens at (0, 0, 0), so that they are not turned; with a fourth
    axis, as in FLUX.2, captions are at (0, 0, 0, place in the caption).

    in_channels, input_size: the latent's; input_size is one number or (height, width). Any size is served.
    pooled_width, token_width: widths of `cond.pooled` and `cond.tokens`.
    single_depth: None is twice `depth`. axes: the numbers of a head that each axis turns, with the head's
        width as their sum; None divides it as FLUX does.
    guidance: as in `DiT`.
    recompute, patch_bottleneck, base_width, durations: as in `MMDiT`.

    Raises ValueError if the patch does not divide the latent, the heads the width, the axes do not sum up,
    or the condition has no tokens.
    """

    size_remark = (
        "it has double-stream blocks, and twice as many single-stream ones unless model.single_depth is set"
    )

    def __init__(
        self,
        *,
        width: Count,
        depth: Count,
        num_heads: Count,
        patch_size: Count,
        in_channels: Count,
        input_size: Size,
        pooled_width: Count | None,
        token_width: Count,
        single_depth: Count | None = None,
        mlp_ratio: Positive = 4.0,
        axes: Sequence[Count] | None = None,
        rope_theta: Positive = 10000.0,
        guidance: NotNegative | None = None,
        attention: Attention | None = None,
        recompute: Recompute = "none",
        patch_bottleneck: Count | None = None,
        base_width: Count | None = None,
        durations: bool = False,
    ) -> None:
        super().__init__()
        if pooled_width is None:
            raise ValueError(NEEDS_CAPTIONS)
        token_grid(input_size, patch_size)  # or it raises
        head = width // num_heads
        turned = tuple(axes) if axes is not None else flux_axes(head)
        if sum(turned) != head or len(turned) not in (3, 4) or any(numbers % 2 for numbers in turned):
            raise ValueError(
                f"model.axes={list(turned)} must be three or four even numbers with the sum "
                f"{head}, which is model.width / model.num_heads"
            )
        self.width, self.patch_size, self.durations = width, patch_size, durations
        self.guidance = guidance
        self.depth, single_depth = depth, single_depth or 2 * depth
        self.patches = PatchEmbedding(
            in_channels=in_channels, patch_size=patch_size, width=width, bottleneck=patch_bottleneck
        )
        self.rotary = RotaryPositions(axes=turned, theta=rope_theta, order="interleaved")
        self.captions = nn.Linear(token_width, width)
        self.time = TimeEmbedding(width=width, durations=durations, guidance=guidance)
        self.pooled = PooledMLP(pooled_width=pooled_width, width=width)
        counts = [6] * (2 * depth) + [3] * single_depth + [2]
        self.modulation = ModulationTable(width=width, counts=counts)
        shared: dict[str, Any] = {
            "width": width,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "attention": attention or FusedAttention(),
            "recompute": recompute,
        }
        double = [MMDiTBlock(qk_norm="rms", **shared) for _ in range(depth)]
        single = [SingleStreamBlock(**shared) for _ in range(single_depth)]
        self.blocks = nn.ModuleList([*double, *single])
        self.final = FinalLayer(width=width, patch_size=patch_size, out_channels=in_channels)
        self.inputs = (*self.patches.linears, self.captions, self.pooled.hidden, *self.time.inputs)
        initialize(
            self,
            zero=[self.modulation.linear, self.final.linear, *self.time.zero],
            normal=self.time.linears,
            inputs=self.inputs,
            width=width,
            base_width=base_width,
        )

    def forward(self, z_t: Latent, t: Time, cond: Condition) -> Latent:
        if cond.tokens is None:
            raise ValueError(NEEDS_CAPTIONS)
        grid = token_grid(z_t.shape[-2:], self.patch_size)
        x, c = self.patches(z_t), self.captions(cond.tokens)  # (b, n, d), (b, l, d)
        y = self.time(t, cond.duration, cond.guidance) + self.pooled(cond.pooled)  # (b, d)
        n, length = x.shape[1], c.shape[1]
        mask = None if cond.mask is None else F.pad(cond.mask, (n, 0), value=True)  # (b, n + l)
        in_captions = len(self.rotary.axes) == 4
        of_x = self.rotary(1, *grid, *[1] * in_captions, device=x.device)
        of_c = self.rotary(1, 1, 1, length, device=x.device) if in_captions else None
        *modulations, final = self.modulation(y)
        double, single = self.blocks[: self.depth], self.blocks[self.depth :]

        for block, for_x, for_c in zip(double, modulations, modulations[self.depth :]):
            x, c = block(x, c, for_x, for_c, mask, of_x, of_c)
        s = torch.cat([x, c], dim=1)  # (b, n + l, d)
        of_s = of_x.then_unturned(length) if of_c is None else of_x.then(of_c)
        for block, for_s in zip(single, modulations[2 * self.depth :]):
            s = block(s, for_s, mask, of_s)
        return self.final(s[:, :n], final, grid)
