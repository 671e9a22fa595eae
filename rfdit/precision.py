"""Which arithmetic a device is fast at."""

import torch


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether bf16 matrix products run on dedicated units: Ampere and later, AVX512-BF16, AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def encoder_dtype(device: torch.device) -> torch.dtype:
    """The dtype that frozen encoders run in on a device: bf16 where that is fast, else fp32."""
    return torch.bfloat16 if multiplies_bf16_fast(device) else torch.float32
