"""Activation checkpointing: selecting the results of a block that are saved for its backward pass."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "full", "selective"]
Args = ParamSpec("Args")
Out = TypeVar("Out")

aten: Any = torch.ops.aten
# Nearly all of a block's operations: its linear layers, and attention where one kernel computes it.
# The products of attention written out are not among them: their scores would be the largest of all.
SAVED = [
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


def recomputable(forward: Callable[Concatenate[Any, Args], Out]) -> Callable[Concatenate[Any, Args], Out]:
    """Decorates the forward method of a block with an attribute `recompute`.

    none saves all activations; full saves the inputs alone and runs the block again in the backward pass;
    selective saves the outputs of matrix products and attention kernels and computes norms, modulation and
    GELU again (the idea of arXiv 2205.05198). It stands inside the block, so that a compiled block has it
    in its graph, where the compiler takes it into account.
    """

    @wraps(forward)
    def recomputed(block: Any, *args: Args.args, **kwargs: Args.kwargs) -> Out:
        if block.recompute not in ("full", "selective") or not torch.is_grad_enabled():
            return forward(block, *args, **kwargs)
        # Nothing in a block draws random numbers, so none are put back.
        settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if block.recompute == "selective":
            settings["context_fn"] = partial(create_selective_checkpoint_contexts, SAVED)
        return checkpoint(partial(forward, block, **kwargs), *args, **settings)

    return recomputed
