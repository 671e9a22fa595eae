"""DiT: a transformer over latent patches, conditioned through adaLN-Zero (arXiv 2212.09748)."""

from jaxtyping import Float
from torch import Tensor, nn

from rfdit.batch import Condition, Latent, Time
from rfdit.limits import Count, NotNegative, Positive, Size
from rfdit.model.blocks import DiTBlock, FinalLayer
from rfdit.model.layers.adaln import AdaLNKind, Layout, make_modulation
from rfdit.model.layers.attention import Attention, FusedAttention
from rfdit.model.layers.embeddings import PatchEmbedding, TimeEmbedding, token_grid
from rfdit.model.layers.initialization import initialize
from rfdit.model.layers.mlp import MLP
from rfdit.model.layers.norms import Norm, QKNorm
from rfdit.model.layers.positions import Positions, make_positions
from rfdit.model.layers.recompute import Recompute
from rfdit.model.layers.rope import Order
from rfdit.model.routing import Join, Passage
from rfdit.protocols import Route


class DiT(nn.Module):
    """The velocity network with a pooled condition: a class embedding or the pooled caption.

    Shapes: z_t (b, c, h, w), t (b,), cond.pooled (b, p) -> velocity (b, c, h, w), float32.

    in_channels, input_size: the latent's; input_size is one number or (height, width).
    pooled_width: width of `cond.pooled`; None if it has the model's width and is added as it is,
        as label embeddings are.
    mlp: gelu, or swiglu with two thirds of the hidden width. norm: layer or rms, of the tokens.
    qk_norm: that of queries and keys: False, rms (also True) or layer.
    positions: sincos (frozen) or learned vectors that are added, rope, or sincos+rope; rope_order,
        rope_theta: see `rfdit.model.layers.rope`.
    adaln: zero; plain, without gates; or single, with one table for all blocks. shifts: False leaves the
        blocks' shifts out.
    recompute: activation checkpointing, less memory for more time; see `recomputable`.
    patch_bottleneck: numbers to which a patch is reduced on its way to a token; see `PatchEmbedding`.
    time_scale: multiplies t in the time embedding; published checkpoints may have been trained with 1.
    out_channels: channels of the output, if not the latent's: twice as many for `prediction=noise` with a
        learned variance.
    outer_blocks: blocks at either end, between which the others are a path whose output is joined with its input by a
        linear layer, so that tokens or samples may be without it (`Join`); None joins nothing.
    durations: give mean velocities over times from t - `cond.duration` to t, too; see `TimeEmbedding`.
    guidance: of a network that takes the scale of guidance as an input, embedded like the time and added to it, the
        scale at which it is evaluated unless another is set; None for one without it. It has no effect at first.
    base_width: for muP, the width at which the initialisation is DiT's; see `initialize`.

    Raises ValueError if the patch does not divide the latent or the heads the width.
    """

    def __init__(
        self,
        *,
        width: Count,
        depth: Count,
        num_heads: Count,
        patch_size: Count,
        in_channels: Count,
        input_size: Size,
        pooled_width: Count | None = None,
        mlp_ratio: Positive = 4.0,
        mlp: MLP = "gelu",
        norm: Norm = "layer",
        qk_norm: QKNorm = False,
        positions: Positions = "sincos",
        rope_order: Order = "interleaved",
        rope_theta: Positive = 10000.0,
        adaln: AdaLNKind = "zero",
        shifts: bool = True,
        attention: Attention | None = None,
        recompute: Recompute = "none",
        patch_bottleneck: Count | None = None,
        base_width: Count | None = None,
        time_scale: Positive = 1000.0,
        out_channels: Count | None = None,
        durations: bool = False,
        guidance: NotNegative | None = None,
        outer_blocks: Count | None = None,
    ) -> None:
        super().__init__()
        self.width, self.patch_size, self.durations = width, patch_size, durations
        self.route: Route | None = None
        self.guidance = guidance
        self.path = None if outer_blocks is None else (outer_blocks + 1, depth - outer_blocks)
        if self.path is not None and self.path[0] > self.path[1]:
            raise ValueError(
                f"model.outer_blocks={outer_blocks} at either end leave none of model.depth={depth} blocks between them"
            )
        self.patches = PatchEmbedding(
            in_channels=in_channels, patch_size=patch_size, width=width, bottleneck=patch_bottleneck
        )
        self.positions, self.rotary = make_positions(
            positions,
            grid=token_grid(input_size, patch_size),
            width=width,
            num_heads=num_heads,
            theta=rope_theta,
            order=rope_order,
        )
        self.time = TimeEmbedding(width=width, scale=time_scale, durations=durations, guidance=guidance)
        self.pooled = nn.Identity() if pooled_width is None else nn.Linear(pooled_width, width)
        layout = Layout.of(adaln, shifts=shifts)
        self.modulation = make_modulation(adaln, width=width, counts=[layout.per_block] * depth + [2])
        self.blocks = nn.ModuleList(
            DiTBlock(
                width=width,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                mlp=mlp,
                norm=norm,
                qk_norm=qk_norm,
                layout=layout,
                attention=attention or FusedAttention(),
                recompute=recompute,
            )
            for _ in range(depth)
        )
        self.join = None if outer_blocks is None else Join(width=width)
        self.final = FinalLayer(
            width=width, patch_size=patch_size, out_channels=out_channels or in_channels, norm=norm
        )
        self.inputs = tuple(
            m for m in (*self.patches.linears, *self.time.inputs, self.pooled) if isinstance(m, nn.Linear)
        )
        initialize(
            self,
            zero=[self.modulation.linear, self.final.linear, *self.time.zero],
            normal=self.time.linears,
            inputs=self.inputs,
            width=width,
            base_width=base_width,
        )

    def forward(self, z_t: Latent, t: Time, cond: Condition) -> Float[Tensor, "b out h w"]:
        grid = token_grid(z_t.shape[-2:], self.patch_size)
        x = self.patches(z_t)  # (b, n, d)
        if self.positions is not None:
            x = x + self.positions(*grid)
        rotation = None if self.rotary is None else self.rotary(*grid, device=x.device)
        y = self.time(t, cond.duration, cond.guidance) + self.pooled(cond.pooled)  # (b, d)
        *modulations, final = self.modulation(y)
        passage = Passage(self.route, rotation, join=self.join, path=self.path)
        for number, (block, modulation) in enumerate(zip(self.blocks, modulations), start=1):
            x = passage.enter(number, x)
            if passage.has_tokens:
                x = block(x, modulation, passage.rotation)
            x = passage.leave(number, x)
        return self.final(x, final, grid)
