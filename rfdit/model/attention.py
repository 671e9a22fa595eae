"""softmax(q k' / sqrt(d)) v, written twice: fast, and to be read."""

from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Heads = Float[Tensor, "b heads n d"]


@runtime_checkable
class Attention(Protocol):
    """Multi-head attention after the projections; `mask` is True at the keys that exist."""

    def __call__(self, q: Heads, k: Heads, v: Heads, mask: Bool[Tensor, "b n"] | None = None) -> Heads: ...


class FusedAttention:
    """PyTorch's scaled_dot_product_attention: the fastest kernel that the device has."""

    def __call__(self, q: Heads, k: Heads, v: Heads, mask: Bool[Tensor, "b n"] | None = None) -> Heads:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if mask is None else mask[:, None, None]
        )


class ManualAttention:
    """The same, spelled out; softmax in float32."""

    def __call__(self, q: Heads, k: Heads, v: Heads, mask: Bool[Tensor, "b n"] | None = None) -> Heads:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (b, heads, queries, keys)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        return scores.softmax(dim=-1, dtype=scores.dtype).to(v.dtype) @ v
