"""Pretrained modules that are used and never trained, and digests of weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rfdit.device import EncoderPrecision


class Frozen:
    """Holds a pretrained module so that nothing trains, saves, copies or shards it.

    It is not an `nn.Module`, so a module that holds it does not register its weights, and deep copies of
    the holder (those of the EMA, say) share it. It moves to the device and dtype of its latest use.

    dtype: as for `EncoderPrecision`, with `setting`.
    """

    def __init__(self, module: nn.Module, *, dtype: str = "auto", setting: str = "dtype") -> None:
        self._module = module.eval().requires_grad_(False)
        self._precision = EncoderPrecision(dtype, setting=setting)
        self._current: tuple[torch.device, torch.dtype] | None = None
        self._digest: str | None = None

    def weights_digest(self) -> str:
        """SHA-256 of the weights as they were loaded; call it before `on` rounds them."""
        if self._digest is None:
            assert self._current is None or self._current[1] == torch.float32, "the weights have lost bits"
            self._digest = weights_digest(self._module)
        return self._digest

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype to compute in on a device."""
        return self._precision.on(device)

    def on(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The module on a device, in a dtype."""
        if self._current != (device, dtype):
            self._module.to(device=device, dtype=dtype)
            self._current = (device, dtype)
        return self._module

    def __deepcopy__(self, memo: dict[int, object]) -> "Frozen":
        return self


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of the weights of a module; see `state_digest`."""
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
