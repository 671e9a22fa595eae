"""The transformer blocks of DiT (arXiv 2212.09748, sec. 3.2) and of MMDiT (arXiv 2403.03206, sec. 4).

A DiT block is one `TokenStream` that attends to itself; an MMDiT block is an image and a caption stream,
with weights of their own, that attend to both. Gradients, kernels and dtypes are handled elsewhere:
norms and gates in `rfdit.model.layers.adaln`, activation checkpointing in `rfdit.model.layers.recompute`.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rfdit.batch import Latent
from rfdit.model.layers.adaln import Layout, Vectors, adaln, gated, gated_adaln, modulated_norm
from rfdit.model.layers.attention import Attention, Heads
from rfdit.model.layers.embeddings import unpatchify
from rfdit.model.layers.mlp import ACTIVATIONS, MLP, mlp_widths
from rfdit.model.layers.norms import TOKEN_NORMS, Norm, QKNorm, Tokens, head_norm
from rfdit.model.layers.recompute import Recompute, recomputable
from rfdit.model.layers.resizing import Patches, resized_output
from rfdit.model.layers.rope import Rotation

ADALN_ZERO = Layout()  # shift, scale and gate


class TokenStream(nn.Module):
    """The layers that a block has for one sequence of tokens: attention's projections and the MLP.

    num_heads: must divide the width, or ValueError is raised.
    qk_norm: the norm of queries and keys.
    last: the sequence ends here. It still gives queries, keys and values to the others, but has no
        output of its own, and is modulated by (shift, scale) alone.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        qk_norm: QKNorm,
        mlp: MLP = "gelu",
        last: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"model.num_heads={num_heads} does not divide model.width={width}")
        self.num_heads, self.mlp_kind = num_heads, mlp
        self.qk_norm: Norm | None = ("rms" if qk_norm is True else qk_norm) or None
        self.qkv = nn.Linear(width, 3 * width)
        if self.qk_norm:
            self.q_norm = head_norm(self.qk_norm, width // num_heads)
            self.k_norm = head_norm(self.qk_norm, width // num_heads)
        if not last:
            inner, hidden = mlp_widths(mlp, width, mlp_ratio)
            self.proj = nn.Linear(width, width)
            self.mlp_in = nn.Linear(width, inner)
            self.mlp_out = nn.Linear(hidden, width)
            self.activation = ACTIVATIONS[mlp]

    def heads(self, h: Tokens, rotation: Rotation | None = None) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values: (b, n, d) -> three of (b, heads, n, d / heads).

        rotation: turns queries and keys by their positions.
        """
        qkv = self.qkv(h)
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        return q, k, v

    def merge(self, attended: Heads) -> Tokens:
        """The output of attention: (b, heads, n, d / heads) -> (b, n, d)."""
        return self.proj(rearrange(attended, "b heads n d -> b n (heads d)"))

    def mlp(self, h: Tokens) -> Tokens:
        return self.mlp_out(self.activation(self.mlp_in(h)))


class DiTBlock(nn.Module):
    """Self-attention and MLP over one stream: x (b, n, d) -> x'.

    norm: the norm that is modulated. layout: the vectors that modulate it.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        qk_norm: QKNorm,
        attention: Attention,
        mlp: MLP = "gelu",
        norm: Norm = "layer",
        layout: Layout = ADALN_ZERO,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        self.attention, self.recompute = attention, recompute
        self.norm, self.layout = TOKEN_NORMS[norm], layout
        self.x = TokenStream(width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, mlp=mlp)

    @recomputable
    def forward(self, x: Tokens, modulation: Vectors, rotation: Rotation | None = None) -> Tokens:
        attn, mlp = self.layout.halves(modulation)
        x, h = adaln(x, attn.shift, attn.scale, self.norm)  # h = norm(x) (1 + scale) + shift
        y = self.x.merge(self.attention(*self.x.heads(h, rotation)))  # (b, n, d)
        # x = x + gate y, and h of the new x
        x, h = gated_adaln(x, attn.gate, y, mlp.shift, mlp.scale, self.norm)
        return gated(x, mlp.gate, self.x.mlp(h))


class MMDiTBlock(nn.Module):
    """Joint attention over image and caption tokens: x (b, n, d), c (b, l, d) -> x', c'.

    norm: the norm that is modulated. layout: the vectors that modulate it.
    last: the captions end here, and c comes back as it was.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        qk_norm: QKNorm,
        attention: Attention,
        mlp: MLP = "gelu",
        norm: Norm = "layer",
        layout: Layout = ADALN_ZERO,
        recompute: Recompute = "none",
        last: bool = False,
    ) -> None:
        super().__init__()
        self.attention, self.recompute, self.last = attention, recompute, last
        self.norm, self.layout, self.entry = TOKEN_NORMS[norm], layout, layout.ungated
        self.x = TokenStream(width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, mlp=mlp)
        self.c = TokenStream(
            width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, mlp=mlp, last=last
        )

    @recomputable
    def forward(
        self,
        x: Tokens,
        c: Float[Tensor, "b l d"],
        x_modulation: Vectors,
        c_modulation: Float[Tensor, "b k_c d"],
        mask: Bool[Tensor, "b m"] | None = None,
        x_rotation: Rotation | None = None,
        c_rotation: Rotation | None = None,
    ) -> tuple[Tokens, Float[Tensor, "b l d"]]:
        """mask: True at tokens that are not padding, image tokens first."""
        x_attn, x_mlp = self.layout.halves(x_modulation)
        first = self.entry.half(c_modulation.unbind(1))  # all that the last captions have
        x, h_x = adaln(x, x_attn.shift, x_attn.scale, self.norm)
        c, h_c = adaln(c, first.shift, first.scale, self.norm)
        heads = zip(self.x.heads(h_x, x_rotation), self.c.heads(h_c, c_rotation))
        q, k, v = (torch.cat(both, dim=2) for both in heads)
        y_x, y_c = self.attention(q, k, v, mask).split([x.shape[1], c.shape[1]], dim=2)

        x, h_x = gated_adaln(x, x_attn.gate, self.x.merge(y_x), x_mlp.shift, x_mlp.scale, self.norm)
        x = gated(x, x_mlp.gate, self.x.mlp(h_x))
        if self.last:
            return x, c
        c_attn, c_mlp = self.layout.halves(c_modulation)
        c, h_c = gated_adaln(c, c_attn.gate, self.c.merge(y_c), c_mlp.shift, c_mlp.scale, self.norm)
        return x, gated(c, c_mlp.gate, self.c.mlp(h_c))


class FinalLayer(nn.Module):
    """adaLN, then one linear layer to the patch of each token: (b, n, d) -> (b, c, h, w)."""

    def __init__(self, *, width: int, patch_size: int, out_channels: int, norm: Norm = "layer") -> None:
        super().__init__()
        self.patch_size, self.out_channels, self.norm = patch_size, out_channels, TOKEN_NORMS[norm]
        self.linear = nn.Linear(width, patch_size**2 * out_channels)

    def forward(self, x: Tokens, modulation: Vectors, grid: tuple[int, int]) -> Latent:
        """grid: rows and columns of tokens."""
        shift, scale = modulation.unbind(1)
        return unpatchify(self.linear(modulated_norm(x, shift, scale, self.norm)), grid, self.patch_size)

    def from_patches(self, weight: Tensor, patches: Patches) -> Tensor:
        """As of `ResizesPatches`."""
        return resized_output(weight, patches, Patches(self.patch_size, self.out_channels))
