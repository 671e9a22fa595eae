"""MMDiT: image and caption tokens attend jointly, each with weights of its own (arXiv 2403.03206)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from rfdit.batch import Condition, Latent, Time
from rfdit.model.attention import Attention, FusedAttention
from rfdit.model.backbone import ModulationTable, check_heads, initialize, token_grid, unpatchify
from rfdit.model.blocks import FinalLayer, MMDiTBlock, Stream
from rfdit.model.embeddings import PatchEmbedding, PositionEmbedding, Positions, TimeEmbedding
from rfdit.model.recompute import Recompute

NEEDS_CAPTIONS = "model=mmdit attends to caption tokens; use conditioner=text, or model=dit"


class MMDiT(nn.Module):
    """The velocity network with a sequence of caption tokens beside the pooled caption.

    in_channels, input_size: the latent's; input_size is one number or (height, width).
    pooled_width, token_width: widths of `cond.pooled` and `cond.tokens`.
    recompute: activation checkpointing, less memory for more time; see `recomputed`.
    base_width: for muP, the width at which the initialisation is DiT's; see `initialize`.
    Raises ValueError if the patch does not divide the latent, the heads the width, or the
    condition has no tokens.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        patch_size: int,
        in_channels: int,
        input_size: int | Sequence[int],
        pooled_width: int | None,
        token_width: int,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        positions: Positions = "sincos",
        attention: Attention | None = None,
        recompute: Recompute = "none",
        base_width: int | None = None,
    ) -> None:
        super().__init__()
        check_heads(width, num_heads)
        if pooled_width is None:
            raise ValueError(NEEDS_CAPTIONS)
        self.patch_size, self.depth = patch_size, depth
        grid = token_grid(input_size, patch_size)
        self.patches = PatchEmbedding(in_channels=in_channels, patch_size=patch_size, width=width)
        self.positions = PositionEmbedding(grid=grid, width=width, kind=positions)
        self.captions = nn.Linear(token_width, width)
        self.time = TimeEmbedding(width=width)
        self.pooled = nn.Linear(pooled_width, width)
        last = [i == depth - 1 for i in range(depth)]
        self.modulation = ModulationTable(
            width=width, counts=[6] * depth + [Stream.modulations(is_last) for is_last in last] + [2]
        )
        self.blocks = nn.ModuleList(
            MMDiTBlock(
                width=width,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qk_norm=qk_norm,
                attention=attention or FusedAttention(),
                recompute=recompute,
                last=is_last,
            )
            for is_last in last
        )
        self.final = FinalLayer(width=width, out_features=patch_size**2 * in_channels)
        self.width = width
        self.inputs = (self.patches.proj, self.captions, self.time.hidden, self.pooled)
        initialize(
            self,
            zero=[self.modulation.linear, self.final.linear],
            normal=[self.time.hidden, self.time.out],
            inputs=self.inputs,
            width=width,
            base_width=base_width,
        )

    def forward(self, z_t: Latent, t: Time, cond: Condition) -> Latent:
        if cond.tokens is None:
            raise ValueError(NEEDS_CAPTIONS)
        grid = token_grid(z_t.shape[-2:], self.patch_size)
        x = self.patches(z_t) + self.positions(*grid)  # (b, n, d)
        c = self.captions(cond.tokens)  # (b, l, d)
        y = self.time(t) + self.pooled(cond.pooled)  # (b, d)
        mask = None if cond.mask is None else F.pad(cond.mask, (x.shape[1], 0), value=True)  # (b, n + l)
        modulations = self.modulation(y)
        for block, for_x, for_c in zip(self.blocks, modulations, modulations[self.depth :]):
            x, c = block(x, c, for_x, for_c, mask)
        return unpatchify(self.final(x, modulations[-1]), grid, self.patch_size)
