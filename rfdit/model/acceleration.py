"""Faster blocks of a backbone: compiled, with weights rounded once, and in FP8."""

import torch
from torch import nn

from rfdit.extras import check_installed
from rfdit.model.layers.adaln import ModulationTable, SharedModulation
from rfdit.protocols import Backbone

CAPABILITY = (8, 9)  # compute capability of the first NVIDIA GPUs that multiply FP8
MULTIPLE = 16  # the kernels accept only matrices whose sides are multiples of it


def compile_blocks(backbone: Backbone) -> None:
    """Applies torch.compile to each block: as fast as compiling the whole, and compiled once for all."""
    for block in backbone.blocks:
        block.compile()


def round_weights(backbone: Backbone, dtype: torch.dtype) -> None:
    """Casts the linear layers of blocks and modulations to `dtype`, for sampling under autocast.

    Autocast rounds weights that need no gradient at every call; rounded once, they give the same bits.
    """
    tables = [
        module for module in backbone.modules() if isinstance(module, ModulationTable | SharedModulation)
    ]
    for part in (backbone.blocks, *tables):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)


def check_fp8(device: torch.device) -> None:
    """Raises ValueError if a device does not multiply FP8, or torchao is not installed."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        raise ValueError(
            f"fp8=true needs a GPU that multiplies FP8 (compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or more), "
            f"and this run is on {device.type}; use fp8=false"
        )
    check_installed("torchao", purpose="fp8=true")


def use_fp8(backbone: Backbone, *, emulate: bool = False) -> None:
    """Converts the linear layers of the blocks to FP8 products, scaled by tensor (arXiv 2209.05433).

    Activations and weights are e4m3, gradients e5m2; parameters stay as they are. Layers with a side that
    is not a multiple of 16, and all layers outside the blocks, are left as they are.
    emulate: compute the same in float32, on any device.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def suits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not (
            module.in_features % MULTIPLE or module.out_features % MULTIPLE
        )

    config = Float8LinearConfig(emulate=emulate)
    convert_to_float8_training(backbone.blocks, module_filter_fn=suits, config=config)
