"""A pretrained module that stands beside the model."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Frozen:
    """Holds a pretrained module so that nothing trains, saves, copies or shards it.

    It is no `nn.Module`, so a module that holds it does not register its weights; a deep copy of
    the holder (an EMA copy, say) shares it. It moves to the device of its first use and runs in
    `dtype` there.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module.eval().requires_grad_(False)
        self._place: tuple[torch.device, torch.dtype] | None = None
        self._digest: str | None = None

    def digest(self) -> str:
        """Of the weights as they were loaded, so it is first asked for before they lose bits in `on`."""
        if self._digest is None:
            assert self._place is None or self._place[1] == torch.float32, "the weights have lost bits"
            self._digest = weights_digest(self._module)
        return self._digest

    def on(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The module, on a device in a dtype."""
        if self._place != (device, dtype):
            self._module.to(device=device, dtype=dtype)
            self._place = (device, dtype)
        return self._module

    def __deepcopy__(self, memo: dict[int, object]) -> "Frozen":
        return self


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights; see `state_digest`."""
    return state_digest(module.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict: sorted names, shapes and values.

    Floating-point values count as float32, so that a file in half precision and the module that was
    loaded from it are the same.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        digest.update(f"{name} {list(values.shape)} {values.dtype}\n".encode())
        digest.update(values.contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()
