"""DiT's two variants without adaLN (arXiv 2212.09748, sec. 3.2): time and condition as tokens.

In-context conditioning appends the two tokens to the patches, and takes them off at the end; blocks are those
of a ViT. Cross-attention keeps them apart: between attention and MLP, every block attends to them. The other
two variants, adaLN and adaLN-Zero, are `DiT` with adaln=plain and adaln=zero.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rfdit.batch import Condition, Latent, Time
from rfdit.limits import Count, Positive, Size
from rfdit.model.blocks import TokenStream
from rfdit.model.layers.attention import Attention, FusedAttention
from rfdit.model.layers.embeddings import PatchEmbedding, TimeEmbedding, token_grid, unpatchify
from rfdit.model.layers.initialization import initialize
from rfdit.model.layers.mlp import MLP
from rfdit.model.layers.norms import Norm, QKNorm, Tokens, weighted_norm
from rfdit.model.layers.positions import Positions, make_positions
from rfdit.model.layers.recompute import Recompute, recomputable
from rfdit.model.layers.rope import Order, Rotation

Conditioning = Literal["in_context", "cross_attention"]
Context = Float[Tensor, "b k d"]


class CrossAttention(nn.Module):
    """Attention of x to a context, with projections of its own: (b, n, d), (b, k, d) -> (b, n, d)."""

    def __init__(self, *, width: Count, num_heads: Count, attention: Attention) -> None:
        super().__init__()
        self.num_heads, self.attention = num_heads, attention
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, h: Tokens, context: Context) -> Tokens:
        q = rearrange(self.q(h), "b n (heads d) -> b heads n d", heads=self.num_heads)
        k, v = rearrange(
            self.kv(context), "b k (two heads d) -> two b heads k d", two=2, heads=self.num_heads
        )
        return self.proj(rearrange(self.attention(q, k, v), "b heads n d -> b n (heads d)"))


class TokenDiTBlock(nn.Module):
    """The block of a ViT, with cross-attention to a context if it has one: x (b, n, d) -> x'."""

    def __init__(
        self,
        *,
        width: Count,
        num_heads: Count,
        mlp_ratio: Positive,
        qk_norm: QKNorm,
        attention: Attention,
        mlp: MLP,
        norm: Norm,
        crosses: bool,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        self.attention, self.recompute = attention, recompute
        self.x = TokenStream(width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, mlp=mlp)
        self.attn_norm, self.mlp_norm = weighted_norm(norm, width), weighted_norm(norm, width)
        if crosses:
            self.cross_norm = weighted_norm(norm, width)
            self.cross = CrossAttention(width=width, num_heads=num_heads, attention=attention)

    @recomputable
    def forward(self, x: Tokens, context: Context | None = None, rotation: Rotation | None = None) -> Tokens:
        heads = self.x.heads(self.attn_norm(x), rotation)
        x = x + self.x.merge(self.attention(*heads))
        if context is not None:
            x = x + self.cross(self.cross_norm(x), context)
        return x + self.x.mlp(self.mlp_norm(x))


class TokenDiT(nn.Module):
    """DiT with time and pooled condition as two tokens, in the sequence or beside it.

    Shapes and settings are those of `DiT`, apart from:
    conditioning: in_context or cross_attention.
    Raises ValueError if the patch does not divide the latent or the heads the width.
    """

    size_remark = "its blocks have no adaLN, and the parameters of in-context or cross-attention conditioning"

    def __init__(
        self,
        *,
        width: Count,
        depth: Count,
        num_heads: Count,
        patch_size: Count,
        in_channels: Count,
        input_size: Size,
        conditioning: Conditioning,
        pooled_width: Count | None = None,
        mlp_ratio: Positive = 4.0,
        mlp: MLP = "gelu",
        norm: Norm = "layer",
        qk_norm: QKNorm = False,
        positions: Positions = "sincos",
        rope_order: Order = "interleaved",
        rope_theta: Positive = 10000.0,
        attention: Attention | None = None,
        recompute: Recompute = "none",
        patch_bottleneck: Count | None = None,
        base_width: Count | None = None,
        durations: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.patch_size, self.durations = width, patch_size, durations
        self.conditioning = conditioning
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
        self.time = TimeEmbedding(width=width, durations=durations)
        self.pooled = nn.Identity() if pooled_width is None else nn.Linear(pooled_width, width)
        self.blocks = nn.ModuleList(
            TokenDiTBlock(
                width=width,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                mlp=mlp,
                norm=norm,
                qk_norm=qk_norm,
                attention=attention or FusedAttention(),
                recompute=recompute,
                crosses=conditioning == "cross_attention",
            )
            for _ in range(depth)
        )
        self.final_norm = weighted_norm(norm, width)
        self.final = nn.Linear(width, patch_size**2 * in_channels)
        self.inputs = tuple(
            m for m in (*self.patches.linears, *self.time.inputs, self.pooled) if isinstance(m, nn.Linear)
        )
        initialize(
            self,
            zero=[self.final, *self.time.zero],
            normal=self.time.linears,
            inputs=self.inputs,
            width=width,
            base_width=base_width,
        )

    def forward(self, z_t: Latent, t: Time, cond: Condition) -> Latent:
        grid = token_grid(z_t.shape[-2:], self.patch_size)
        x = self.patches(z_t)  # (b, n, d)
        if self.positions is not None:
            x = x + self.positions(*grid)
        rotation = None if self.rotary is None else self.rotary(*grid, device=x.device)
        tokens = torch.stack(
            [self.time(t, cond.duration, cond.guidance), self.pooled(cond.pooled)], dim=1
        )  # (b, 2, d)
        n = x.shape[1]
        context: Context | None = tokens
        if self.conditioning == "in_context":
            x, context = torch.cat([x, tokens], dim=1), None
            rotation = None if rotation is None else rotation.then_unturned(2)
        for block in self.blocks:
            x = block(x, context, rotation)
        return unpatchify(self.final(self.final_norm(x[:, :n])), grid, self.patch_size)
