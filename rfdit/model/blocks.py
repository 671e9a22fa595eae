"""The transformer block of DiT (arXiv 2212.09748, sec. 3.2) and of MMDiT (arXiv 2403.03206, sec. 4).

Both are made of `Stream`s. A DiT block is one stream that attends to itself; an MMDiT block is an
image and a caption stream, with weights of their own, that attend to both.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rfdit.model.adaln import Tokens, gated_norm_of, modulated_norm, norm_of
from rfdit.model.attention import Attention, Heads
from rfdit.model.recompute import Recompute, recomputed

Modulation = Float[Tensor, "b k d"]  # k vectors per sample: shift, scale, gate, shift, scale, gate


def gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """GELU in its tanh form, x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3).

    Compiled, it is the same function written x sigmoid(2 u): a CPU's vectorised tanh takes three
    times as long as its exponential.
    """
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * x * (1 + 0.044715 * x * x))
    return F.gelu(x, approximate="tanh")


def _rms_normed(x: Heads, norm: nn.RMSNorm) -> Heads:
    """In float32, also where the scale was sent in fewer bits."""
    return F.rms_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.eps)


class Stream(nn.Module):
    """One token stream's part of a block: fused qkv, attention output, MLP, all adaLN-modulated.

    last: this stream ends here. It still gives keys and values (and queries) to the others, but
    has no output of its own; its modulation is (shift, scale) alone.
    """

    def __init__(
        self, *, width: int, num_heads: int, mlp_ratio: float, qk_norm: bool, last: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.qk_norm = num_heads, qk_norm
        self.qkv = nn.Linear(width, 3 * width)
        head = width // num_heads
        if qk_norm:
            self.q_norm = nn.RMSNorm(head, eps=1e-6)
            self.k_norm = nn.RMSNorm(head, eps=1e-6)
        if not last:
            self.proj = nn.Linear(width, width)
            self.mlp_in = nn.Linear(width, int(mlp_ratio * width))
            self.mlp_out = nn.Linear(int(mlp_ratio * width), width)

    @staticmethod
    def modulations(last: bool) -> int:
        """How many vectors of the width modulate a stream."""
        return 2 if last else 6

    def queries_keys_values(self, x: Tokens, modulation: Modulation) -> tuple[Tokens, Heads, Heads, Heads]:
        """(b, n, d) -> x to go on with, and three of (b, heads, n, d / heads)."""
        shift, scale = modulation.unbind(1)[:2]
        x, h = norm_of(x, shift, scale)
        qkv = self.qkv(h)
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads)
        if self.qk_norm:
            # Squares are summed in float32, whatever the products' precision.
            q, k = (
                _rms_normed(heads, norm).to(v.dtype) for heads, norm in ((q, self.q_norm), (k, self.k_norm))
            )
        return x, q, k, v

    def update(self, x: Tokens, attended: Heads, modulation: Modulation) -> Tokens:
        """The residual stream after attention and MLP, each behind its gate."""
        _, _, gate_attn, shift, scale, gate_mlp = modulation.unbind(1)
        y = self.proj(rearrange(attended, "b heads n d -> b n (heads d)"))
        x, h = gated_norm_of(x, y, gate_attn, shift, scale)
        return x + gate_mlp[:, None] * self.mlp_out(gelu(self.mlp_in(h)))


class DiTBlock(nn.Module):
    """Self-attention and MLP over one stream, x -> x'."""

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        qk_norm: bool,
        attention: Attention,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        self.attention, self.recompute = attention, recompute
        self.x = Stream(width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm)

    def forward(self, x: Tokens, modulation: Modulation) -> Tokens:
        return recomputed(self._forward, x, modulation, recompute=self.recompute)

    def _forward(self, x: Tokens, modulation: Modulation) -> Tokens:
        x, q, k, v = self.x.queries_keys_values(x, modulation)
        return self.x.update(x, self.attention(q, k, v), modulation)


class MMDiTBlock(nn.Module):
    """Joint attention over image and caption tokens, (x, c) -> (x', c').

    last: the captions end here: (x, c) -> (x', c), with c untouched.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        qk_norm: bool,
        attention: Attention,
        recompute: Recompute = "none",
        last: bool = False,
    ) -> None:
        super().__init__()
        self.attention, self.recompute, self.last = attention, recompute, last
        self.x = Stream(width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm)
        self.c = Stream(width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, last=last)

    def forward(
        self,
        x: Tokens,
        c: Float[Tensor, "b l d"],
        x_modulation: Modulation,
        c_modulation: Float[Tensor, "b k_c d"],
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> tuple[Tokens, Float[Tensor, "b l d"]]:
        """mask: True at the tokens that exist, image tokens first."""
        args = x, c, x_modulation, c_modulation, mask
        return recomputed(self._forward, *args, recompute=self.recompute)

    def _forward(
        self,
        x: Tokens,
        c: Float[Tensor, "b l d"],
        x_modulation: Modulation,
        c_modulation: Float[Tensor, "b k_c d"],
        mask: Bool[Tensor, "b m"] | None,
    ) -> tuple[Tokens, Float[Tensor, "b l d"]]:
        x, *x_heads = self.x.queries_keys_values(x, x_modulation)
        c, *c_heads = self.c.queries_keys_values(c, c_modulation)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(x_heads, c_heads))  # (b, heads, n + l, d)
        attended_x, attended_c = self.attention(q, k, v, mask).split([x.shape[1], c.shape[1]], dim=2)
        x = self.x.update(x, attended_x, x_modulation)
        return x, c if self.last else self.c.update(c, attended_c, c_modulation)


class FinalLayer(nn.Module):
    """adaLN, then one linear layer to the patch's pixels."""

    def __init__(self, *, width: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out_features)

    def forward(self, x: Tokens, modulation: Modulation) -> Float[Tensor, "b n o"]:
        shift, scale = modulation.unbind(1)
        return self.linear(modulated_norm(x, shift, scale))
