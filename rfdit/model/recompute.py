"""Activation checkpointing: what a block keeps for the way back, and what it computes again."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "full", "selective"]
Out = TypeVar("Out", Tensor, tuple[Tensor, Tensor])

aten: Any = torch.ops.aten
# Nearly all of a block's operations: its linear layers, and attention where one kernel computes it.
# The products of attention spelled out are not among them: their scores would be the largest of all.
KEPT = [
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


def recomputed(function: Callable[..., Out], *args: Tensor | None, recompute: Recompute) -> Out:
    """`function(*args)`, whose activations are kept, dropped (full), or kept if dear (selective).

    Selective keeps the outputs of matrix products and attention kernels and computes norms, modulation
    and GELU again (arXiv 2205.05198 has the idea). It stands inside the blocks, so that a compiled block
    has it in its graph, where the compiler heeds it.
    """
    if recompute not in ("full", "selective") or not torch.is_grad_enabled():
        return function(*args)
    # Nothing in a block draws random numbers, so none are put back.
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if recompute == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(function, *args, **settings)
