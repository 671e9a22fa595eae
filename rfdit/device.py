"""Devices: settings to devices and precisions, and the memory allocator of the CPU."""

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.storage.lru import LRU


def multiplies_bf16_fast(device: torch.device) -> bool:
    """True where dedicated units multiply bf16: NVIDIA Ampere and later, AVX512-BF16, AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Context in which products are computed in the dtypes of their factors. like: a tensor on the device."""
    # Meta tensors, on which costs are counted, have no autocast to switch off.
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def device_in_words(device: torch.device, count: int = 1) -> str:
    """`CPU with 2 threads`, `NVIDIA H100`, `8 x NVIDIA H100`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        name = "Apple's GPU"
    else:
        threads = torch.get_num_threads()
        name = f"CPU with {threads} thread{'s' * (threads > 1)}"
    return name if count == 1 else f"{count} x {name}"


_constants: LRU[tuple[tuple[float, ...], torch.device, torch.dtype], Tensor] = LRU(64)


def constant(
    values: tuple[float, ...], *, like: Tensor, dtype: torch.dtype | None = None
) -> Float[Tensor, "n"]:
    """Numbers as a tensor on the device of another, copied there once: each copy to a GPU makes the host wait.

    The tensor is shared, and must not be changed. dtype: None is that of the other.
    """
    key = (values, like.device, dtype or like.dtype)

    # It may first be needed in inference mode, whose tensors cannot take part in training.
    with torch.inference_mode(False):

        def made() -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device="cpu").to(key[1], key[2])

        # Stand-ins for tensors, with which memory is estimated, do not mix with others.
        return _constants.get_or_make(key, made) if type(like) is Tensor else made()


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class EncoderPrecision:
    """The precision of a frozen encoder.

    dtype: `auto` (bf16 where the device multiplies it fast, else fp32), `fp32` or `bf16`.
    setting: the name of `dtype` in the configuration, for the ValueError about any other value.
    """

    def __init__(self, dtype: str, *, setting: str) -> None:
        if dtype != "auto" and dtype not in DTYPES:
            raise ValueError(f"{setting}={dtype} is unknown; use auto, fp32 or bf16")
        self._dtype = dtype

    def on(self, device: torch.device) -> torch.dtype:
        """The dtype to compute in on a device."""
        if self._dtype == "auto":
            return torch.bfloat16 if multiplies_bf16_fast(device) else torch.float32
        return DTYPES[self._dtype]


PRECISIONS = {"bf16": "bf16-mixed", "fp32": "32-true"}


def pick_device(accelerator: str, setting: str = "trainer.accelerator") -> torch.device:
    """The device that `accelerator` (auto, cpu, gpu, cuda, mps) means on this machine.

    setting: its name in the configuration, for the ValueError if this machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    if (
        accelerator in ("gpu", "cuda")
        and not torch.cuda.is_available()
        and not (accelerator == "gpu" and has_mps)
    ):
        raise ValueError(
            f"{setting}={accelerator} asks for a GPU and this machine has none that torch "
            f"{torch.__version__} can use; use auto or cpu"
        )
    if accelerator == "mps" and not has_mps:
        raise ValueError(f"{setting}=mps asks for Apple's GPU and this machine has none; use auto or cpu")
    if accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise ValueError(f"{setting}={accelerator} is unknown; use auto, cpu, gpu, cuda or mps")
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if accelerator != "cpu" and has_mps else "cpu")


@runtime_checkable
class ShardsState(Protocol):
    """A strategy that spreads weights, gradients, moments and averages over ranks; others copy them to each.

    replicas: the number of groups of ranks that each hold one whole copy.
    """

    replicas: int


def check_devices(devices: int, num_nodes: int, strategy: object | None) -> None:
    """Raises ValueError if a strategy (None is strategy=single) does not support that many devices."""
    if strategy is None and devices * num_nodes > 1:
        raise ValueError(
            f"strategy=single runs on one device, not on trainer.devices={devices} of "
            f"trainer.num_nodes={num_nodes}; use strategy=ddp or strategy=fsdp"
        )
    if isinstance(strategy, ShardsState) and devices * num_nodes % strategy.replicas:
        raise ValueError(
            f"strategy.replicas={strategy.replicas} does not divide the {devices * num_nodes} ranks "
            "(trainer.devices times trainer.num_nodes)"
        )


def pick_precision(precision: str, device: torch.device, setting: str = "trainer.precision") -> str:
    """Lightning's name of a precision: `bf16`, `fp32`, or `auto`, which is bf16 where it is fast.

    setting: its name in the configuration, for the ValueError about any other value.
    """
    if precision == "auto":
        precision = "bf16" if multiplies_bf16_fast(device) else "fp32"
    if precision not in PRECISIONS:
        raise ValueError(f"{setting}={precision} is unknown; use auto, bf16 or fp32")
    return PRECISIONS[precision]


TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory instead of returning it to the system; False without glibc.

    A training step on a CPU frees and allocates the same blocks every time. By default each large one is
    returned to the system and mapped again page by page, which takes 10 to 20% of a step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
