"""Attention, softmax(q k^T / sqrt(d)) v: as kernels, and written out."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Heads = Float[Tensor, "b heads n head"]
Queries = Float[Tensor, "b heads queries head"]
Keys = Float[Tensor, "b heads keys head"]
Mask = Bool[Tensor, "b keys"]


@runtime_checkable
class Attention(Protocol):
    """Multi-head attention between the projections; `mask` is True at keys that are not padding."""

    def __call__(self, q: Queries, k: Keys, v: Keys, mask: Mask | None = None) -> Queries: ...


@runtime_checkable
class ChosenByDevice(Protocol):
    """An attention that computes differently from device to device."""

    def on(self, device: torch.device) -> Attention:
        """The attention that stands for it on a device, for estimates that are made on another."""
        ...


class ManualAttention:
    """Written out. Probabilities have the dtype of the inputs; softmax itself computes in float32."""

    def __call__(self, q: Queries, k: Keys, v: Keys, mask: Mask | None = None) -> Queries:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (b, heads, queries, keys)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        return scores.softmax(dim=-1) @ v


class KernelAttention:
    """One kernel: PyTorch's scaled_dot_product_attention."""

    def __call__(self, q: Queries, k: Keys, v: Keys, mask: Mask | None = None) -> Queries:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if mask is None else mask[:, None, None]
        )


class FusedAttention:
    """The faster of `KernelAttention` and `ManualAttention` on a device.

    That is the kernel, except in bf16 on a CPU. There its backward pass takes two to six times as long
    as plain matrix products, up to the number of tokens whose scores still fit into a cache.
    """

    _kernel, _products = KernelAttention(), ManualAttention()

    def __call__(self, q: Queries, k: Keys, v: Keys, mask: Mask | None = None) -> Queries:
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= 1024:
            return self._products(q, k, v, mask)
        return self._kernel(q, k, v, mask)

    def on(self, device: torch.device) -> Attention:
        return self if device.type == "cpu" else self._kernel
