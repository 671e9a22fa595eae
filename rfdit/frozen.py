"""A pretrained module that stands beside the model."""

import torch
from torch import nn


class Frozen:
    """Holds a pretrained module so that nothing trains, saves, copies or shards it.

    It is no `nn.Module`, so a module that holds it does not register its weights; a deep copy of
    the holder (an EMA copy, say) shares it. It moves to the device of its first use and runs in
    `dtype` there.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module.eval().requires_grad_(False)
        self._place: tuple[torch.device, torch.dtype] | None = None

    def on(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The module, on a device in a dtype."""
        if self._place != (device, dtype):
            self._module.to(device=device, dtype=dtype)
            self._place = (device, dtype)
        return self._module

    def __deepcopy__(self, memo: dict[int, object]) -> "Frozen":
        return self
