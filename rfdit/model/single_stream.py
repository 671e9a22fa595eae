"""FLUX's single-stream block: attention and MLP side by side over all tokens (as in ViT-22B, arXiv 2302.05442)."""

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor, nn

from rfdit.model.blocks import TokenStream
from rfdit.model.layers.adaln import Layout, Vectors, adaln, gated
from rfdit.model.layers.attention import Attention
from rfdit.model.layers.mlp import gelu
from rfdit.model.layers.norms import Tokens
from rfdit.model.layers.recompute import Recompute, recomputable
from rfdit.model.layers.rope import Rotation


class SingleStreamBlock(nn.Module):
    """x' = x + gate proj([attention(h), gelu(mlp_in(h))]), h = norm(x) (1 + scale) + shift: x (b, m, d) -> x'."""

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        attention: Attention,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        self.attention, self.recompute, self.layout = attention, recompute, Layout()
        hidden = int(mlp_ratio * width)
        # Queries, keys and values alone: `proj` is the output of both.
        self.x = TokenStream(width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, qk_norm="rms", last=True)
        self.mlp_in = nn.Linear(width, hidden)
        self.proj = nn.Linear(width + hidden, width)

    @recomputable
    def forward(
        self,
        x: Tokens,
        modulation: Vectors,
        mask: Bool[Tensor, "b m"] | None = None,
        rotation: Rotation | None = None,
    ) -> Tokens:
        """mask: True at tokens that are not padding."""
        shift, scale, gate = self.layout.half(modulation.unbind(1))
        x, h = adaln(x, shift, scale)
        attended = self.attention(*self.x.heads(h, rotation), mask)
        y = rearrange(attended, "b heads n d -> b n (heads d)")
        return gated(x, gate, self.proj(torch.cat([y, gelu(self.mlp_in(h))], dim=-1)))
