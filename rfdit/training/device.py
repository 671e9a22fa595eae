"""What a run computes on and in which precision; without Lightning, for those who do not train."""

import torch

from rfdit.precision import multiplies_bf16_fast

PRECISIONS = {"bf16": "bf16-mixed", "fp32": "32-true"}


def pick_device(accelerator: str, setting: str = "trainer.accelerator") -> torch.device:
    """The kind of device that `accelerator` (auto, cpu, gpu, cuda, mps) means on this machine.

    setting: its name in the configuration, for the ValueError where there is no such device.
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


def check_devices(devices: int, num_nodes: int, strategy: object | None) -> None:
    """Raises ValueError for a number of devices that a strategy (None is strategy=single) cannot be spread over."""
    if strategy is None and devices * num_nodes > 1:
        raise ValueError(
            f"strategy=single runs on one device, not on trainer.devices={devices} of "
            f"trainer.num_nodes={num_nodes}; use strategy=ddp or strategy=fsdp"
        )
    replicas = getattr(strategy, "replicas", 1)
    if devices * num_nodes % replicas:
        raise ValueError(
            f"strategy.replicas={replicas} does not divide the {devices * num_nodes} ranks "
            "(trainer.devices times trainer.num_nodes)"
        )


def pick_precision(precision: str, device: torch.device, setting: str = "trainer.precision") -> str:
    """Lightning's name of a precision; `auto` is bf16 where the device multiplies it fast, else fp32."""
    if precision == "auto":
        precision = "bf16" if multiplies_bf16_fast(device) else "fp32"
    if precision not in PRECISIONS:
        raise ValueError(f"{setting}={precision} is unknown; use auto, bf16 or fp32")
    return PRECISIONS[precision]
