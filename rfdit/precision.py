"""Which arithmetic a device is fast at."""

import torch


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether bf16 matrix products run on dedicated units: Ampere and later, AVX512-BF16, AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class EncoderPrecision:
    """The arithmetic of a frozen encoder.

    dtype: `auto` (bf16 where the device multiplies it fast, else fp32), `fp32` or `bf16`.
    setting: the name of `dtype` in the configuration, for the ValueError about any other value.
    """

    def __init__(self, dtype: str, *, setting: str) -> None:
        if dtype != "auto" and dtype not in DTYPES:
            raise ValueError(f"{setting}={dtype} is unknown; use auto, fp32 or bf16")
        self._dtype = dtype

    def on(self, device: torch.device) -> torch.dtype:
        """The dtype on a device."""
        if self._dtype == "auto":
            return torch.bfloat16 if multiplies_bf16_fast(device) else torch.float32
        return DTYPES[self._dtype]
