"""The physical limit that MFU is a share of."""

import time

import torch


def matmul_peak(
    device: torch.device, dtype: torch.dtype, *, size: int | None = None, repeats: int = 7
) -> float:
    """The device's matrix-product rate in floating-point operations per second, measured.

    The best of `repeats` products of two square matrices: interruptions only ever slow one down.
    """
    n = size or (8192 if device.type == "cuda" else 1536)
    # Random numbers, since zeros multiply faster; but not the run's own.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    return 2 * n**3 / min(once() for _ in range(repeats))
