"""MMDiT: image and caption tokens attend jointly, each with weights of its own (arXiv 2403.03206)."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.batch import Condition, Latent, Time
from rfdit.limits import Count, NotNegative, Positive, Size
from rfdit.model.blocks import FinalLayer, MMDiTBlock
from rfdit.model.layers.adaln import AdaLNKind, Layout, make_modulation
from rfdit.model.layers.attention import Attention, FusedAttention
from rfdit.model.layers.embeddings import (
    CroppedPositions,
    PatchEmbedding,
    PooledMLP,
    PositionEmbedding,
    TimeEmbedding,
    token_grid,
)
from rfdit.model.layers.initialization import initialize
from rfdit.model.layers.mlp import MLP
from rfdit.model.layers.norms import Norm, QKNorm
from rfdit.model.layers.positions import Positions, make_positions
from rfdit.model.layers.recompute import Recompute
from rfdit.model.layers.rope import Order, RotaryPositions
from rfdit.model.routing import Passage
from rfdit.protocols import Route

NEEDS_CAPTIONS = "model=mmdit attends to caption tokens; use conditioner=text, or model=dit"


class MMDiT(nn.Module):
    """The velocity network with a sequence of caption tokens in addition to the pooled caption.

    Shapes: z_t (b, c, h, w), t (b,), cond.pooled (b, p), cond.tokens (b, l, token_width)
    -> velocity (b, c, h, w), float32.

    in_channels, input_size: the latent's; input_size is one number or (height, width).
    pooled_width, token_width: widths of `cond.pooled` and `cond.tokens`.
    mlp, norm, qk_norm, positions, rope_order, rope_theta, adaln, shifts: as in `DiT`. Rotary positions turn
        image tokens alone; adaln=single has one table for both streams. positions=cropped is SD3's frozen
        square of `positions_side` tokens along a side, of which an image has the middle.
    pooled_mlp: SD3's two layers for the pooled caption in place of the paper's one.
    recompute: activation checkpointing, less memory for more time; see `recomputable`.
    patch_bottleneck: numbers to which a patch is reduced on its way to a token; see `PatchEmbedding`.
    out_channels, durations, guidance: as in `DiT`.
    base_width: for muP, the width at which the initialisation is DiT's; see `initialize`.

    Raises ValueError if the patch does not divide the latent, the heads the width, or the
    condition has no tokens.
    """

    size_remark = "a block has twice those of model=dit, since caption tokens have weights of their own"

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
        mlp_ratio: Positive = 4.0,
        mlp: MLP = "gelu",
        norm: Norm = "layer",
        qk_norm: QKNorm = True,
        positions: Positions | Literal["cropped"] = "sincos",
        positions_side: Count | None = None,
        rope_order: Order = "interleaved",
        rope_theta: Positive = 10000.0,
        adaln: AdaLNKind = "zero",
        shifts: bool = True,
        pooled_mlp: bool = False,
        attention: Attention | None = None,
        recompute: Recompute = "none",
        patch_bottleneck: Count | None = None,
        base_width: Count | None = None,
        out_channels: Count | None = None,
        durations: bool = False,
        guidance: NotNegative | None = None,
    ) -> None:
        super().__init__()
        if pooled_width is None:
            raise ValueError(NEEDS_CAPTIONS)
        self.width, self.patch_size, self.durations = width, patch_size, durations
        self.route: Route | None = None
        self.guidance = guidance
        self.path: tuple[int, int] | None = None
        self.patches = PatchEmbedding(
            in_channels=in_channels, patch_size=patch_size, width=width, bottleneck=patch_bottleneck
        )
        grid = token_grid(input_size, patch_size)
        self.positions: PositionEmbedding | CroppedPositions | None
        self.rotary: RotaryPositions | None
        if positions == "cropped":
            side = positions_side or max(grid)
            self.positions, self.rotary = CroppedPositions(grid=grid, side=side, width=width), None
        else:
            self.positions, self.rotary = make_positions(
                positions, grid=grid, width=width, num_heads=num_heads, theta=rope_theta, order=rope_order
            )
        self.captions = nn.Linear(token_width, width)
        self.time = TimeEmbedding(width=width, durations=durations, guidance=guidance)
        self.pooled: nn.Linear | PooledMLP = (
            PooledMLP(pooled_width=pooled_width, width=width)
            if pooled_mlp
            else nn.Linear(pooled_width, width)
        )
        pooled_input = self.pooled.hidden if isinstance(self.pooled, PooledMLP) else self.pooled
        layout = Layout.of(adaln, shifts=shifts)
        last = [i == depth - 1 for i in range(depth)]
        c_counts = [layout.ungated.per_half if is_last else layout.per_block for is_last in last]
        counts = [layout.per_block] * depth + c_counts + [2]
        self.modulation = make_modulation(adaln, width=width, counts=counts)
        self.blocks = nn.ModuleList(
            MMDiTBlock(
                width=width,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                mlp=mlp,
                norm=norm,
                qk_norm=qk_norm,
                layout=layout,
                attention=attention or FusedAttention(),
                recompute=recompute,
                last=is_last,
            )
            for is_last in last
        )
        self.final = FinalLayer(
            width=width, patch_size=patch_size, out_channels=out_channels or in_channels, norm=norm
        )
        self.inputs = (*self.patches.linears, self.captions, *self.time.inputs, pooled_input)
        initialize(
            self,
            zero=[self.modulation.linear, self.final.linear, *self.time.zero],
            normal=self.time.linears,
            inputs=self.inputs,
            width=width,
            base_width=base_width,
        )

    def forward(self, z_t: Latent, t: Time, cond: Condition) -> Float[Tensor, "b out h w"]:
        if cond.tokens is None:
            raise ValueError(NEEDS_CAPTIONS)
        grid = token_grid(z_t.shape[-2:], self.patch_size)
        x = self.patches(z_t)  # (b, n, d)
        if self.positions is not None:
            x = x + self.positions(*grid)
        rotation = None if self.rotary is None else self.rotary(*grid, device=x.device)
        c = self.captions(cond.tokens)  # (b, l, d)
        y = self.time(t, cond.duration, cond.guidance) + self.pooled(cond.pooled)  # (b, d)
        mask = None if cond.mask is None else F.pad(cond.mask, (x.shape[1], 0), value=True)  # (b, n + l)
        *modulations, final = self.modulation(y)
        passage = Passage(self.route, rotation, mask)
        of_blocks = zip(self.blocks, modulations, modulations[len(self.blocks) :])
        for number, (block, for_x, for_c) in enumerate(of_blocks, start=1):
            x = passage.enter(number, x)
            x, c = block(x, c, for_x, for_c, passage.mask, passage.rotation)
            x = passage.leave(number, x)
        return self.final(x, final, grid)
