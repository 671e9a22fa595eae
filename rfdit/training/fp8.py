"""Matrix products in FP8, through torchao, where the hardware multiplies it (arXiv 2209.05433)."""

from importlib.util import find_spec

import torch
from torch import nn

CAPABILITY = (8, 9)  # of the first NVIDIA GPUs that multiply FP8
MULTIPLE = 16  # of both sides of a matrix, or the kernels refuse it


def check_fp8(device: torch.device) -> None:
    """Raises ValueError if a device does not multiply FP8, or torchao is not installed."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        raise ValueError(
            f"fp8=true needs a GPU that multiplies FP8 (compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or more), "
            f"and this run is on {device.type}; use fp8=false"
        )
    if find_spec("torchao") is None:
        raise ValueError("fp8=true needs torchao; install it with pip install 'rfdit[fp8]'")


def use_fp8(backbone: nn.Module, *, emulate: bool = False) -> None:
    """Lets the linear layers of the blocks multiply in FP8, scaled by tensor; their parameters stay as they are.

    Activations and weights are e4m3, gradients e5m2. Layers with a side that is no multiple of 16, and
    all outside the blocks, are left alone. emulate: compute the same in float32, on any device.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def suits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not (
            module.in_features % MULTIPLE or module.out_features % MULTIPLE
        )

    config = Float8LinearConfig(emulate=emulate)
    convert_to_float8_training(backbone.get_submodule("blocks"), module_filter_fn=suits, config=config)
