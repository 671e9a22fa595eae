"""DiT: a transformer over latent patches, conditioned through adaLN-Zero (arXiv 2212.09748)."""

from collections.abc import Sequence

from torch import nn

from rfdit.batch import Condition, Latent, Time
from rfdit.model.attention import Attention, FusedAttention
from rfdit.model.backbone import ModulationTable, check_heads, initialize, token_grid, unpatchify
from rfdit.model.blocks import DiTBlock, FinalLayer
from rfdit.model.embeddings import PatchEmbedding, PositionEmbedding, Positions, TimeEmbedding
from rfdit.model.recompute import Recompute


class DiT(nn.Module):
    """The velocity network with a pooled condition: a class embedding or the pooled caption.

    in_channels, input_size: the latent's; input_size is one number or (height, width).
    pooled_width: width of `cond.pooled`; None if it has the model's width and is added as it is,
        as label embeddings are.
    recompute: activation checkpointing, less memory for more time; see `recomputed`.
    time_scale: of the time embedding; others' checkpoints may have been trained with 1 (rfdit.convert).
    base_width: for muP, the width at which the initialisation is DiT's; see `initialize`.
    Raises ValueError if the patch does not divide the latent or the heads the width.
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
        pooled_width: int | None = None,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        positions: Positions = "sincos",
        attention: Attention | None = None,
        recompute: Recompute = "none",
        base_width: int | None = None,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.patch_size = patch_size
        grid = token_grid(input_size, patch_size)
        self.patches = PatchEmbedding(in_channels=in_channels, patch_size=patch_size, width=width)
        self.positions = PositionEmbedding(grid=grid, width=width, kind=positions)
        self.time = TimeEmbedding(width=width, scale=time_scale)
        self.pooled = nn.Identity() if pooled_width is None else nn.Linear(pooled_width, width)
        self.modulation = ModulationTable(width=width, counts=[6] * depth + [2])
        self.blocks = nn.ModuleList(
            DiTBlock(
                width=width,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qk_norm=qk_norm,
                attention=attention or FusedAttention(),
                recompute=recompute,
            )
            for _ in range(depth)
        )
        self.final = FinalLayer(width=width, out_features=patch_size**2 * in_channels)
        self.width = width
        self.inputs = tuple(
            m for m in (self.patches.proj, self.time.hidden, self.pooled) if isinstance(m, nn.Linear)
        )
        initialize(
            self,
            zero=[self.modulation.linear, self.final.linear],
            normal=[self.time.hidden, self.time.out],
            inputs=self.inputs,
            width=width,
            base_width=base_width,
        )

    def forward(self, z_t: Latent, t: Time, cond: Condition) -> Latent:
        grid = token_grid(z_t.shape[-2:], self.patch_size)
        x = self.patches(z_t) + self.positions(*grid)  # (b, n, d)
        y = self.time(t) + self.pooled(cond.pooled)  # (b, d)
        *modulations, final = self.modulation(y)
        for block, modulation in zip(self.blocks, modulations):
            x = block(x, modulation)
        return unpatchify(self.final(x, final), grid, self.patch_size)
