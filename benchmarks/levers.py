"""Ablation of the choices that make a training step fast.

    python benchmarks/levers.py --size xl --patch 2 --batch 128

The first line is the step of rfdit in benchmarks/train_step.py, in bf16 with everything on: compiled blocks, one
matrix product for all modulations, the fastest attention, fused AdamW, one call for the EMA. Each further line
leaves out one of these, or adds something that is off by default, and prints the time of a step relative to the
first line. Every variant is built, warmed up, timed and freed before the next. The matrix-product peak is
measured after each repeat, so MFU is the share of what the device can reach in that state.
"""

import argparse
import copy
import gc
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_step import (
    LEARNING_RATE,
    Setting,
    network_step,
    rfdit_network,
    seconds,
    step_operations,
    synchronize,
)

from rfdit.cost.count import matmul_peak
from rfdit.device import keep_freed_memory, multiplies_bf16_fast
from rfdit.model import ManualAttention
from rfdit.model.acceleration import CAPABILITY, compile_blocks, use_fp8
from rfdit.model.layers import adaln_operators
from rfdit.model.layers.adaln import ModulationTable
from rfdit.model.layers.attention import KernelAttention
from rfdit.network import Network
from rfdit.training.optim import AdamW, ConstantSchedule


class BackendAttention:
    """scaled_dot_product_attention restricted to one of its kernels."""

    def __init__(self, backend: SDPBackend) -> None:
        self.backend, self._attention = backend, KernelAttention()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        with sdpa_kernel(self.backend):
            return self._attention(q, k, v, mask)


@runtime_checkable
class HasModulation(Protocol):
    """A backbone with one table of the modulations of its blocks."""

    modulation: Any


class SeparateModulations(nn.Module):
    """`ModulationTable` as in most implementations: a linear layer for each block."""

    def __init__(self, table: ModulationTable) -> None:
        super().__init__()
        width = table.linear.in_features
        self.counts = table.counts
        self.linears = nn.ModuleList(nn.Linear(width, count * width) for count in table.counts)

    def forward(self, y: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b _ d"], ...]:
        vectors = [linear(nn.functional.silu(y)).float() for linear in self.linears]
        return tuple(v.unflatten(1, (count, -1)) for v, count in zip(vectors, self.counts))


@dataclass(frozen=True)
class Variant:
    """A step with everything on, except for what its fields change."""

    name: str
    setting: Setting
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the DiT
    separate_modulations: bool = False
    fp8: bool = False
    fused_optimizer: bool = True
    adaln_kernels: bool = adaln_operators.TRITON


def variants(setting: Setting) -> list[Variant]:
    """The step with everything on, followed by variants with one change each."""
    everything = Variant("everything on", setting)
    found = [
        everything,
        replace(everything, name="blocks not compiled", setting=replace(setting, compile=False)),
        replace(everything, name="a modulation layer for each block", separate_modulations=True),
        *(
            [replace(everything, name="adaLN without its kernels", adaln_kernels=False)]
            if setting.device.type == "cuda"
            else []
        ),
        replace(everything, name="AdamW's default form", fused_optimizer=False),
        replace(everything, name="manual attention", options={"attention": ManualAttention()}),
    ]
    if setting.device.type == "cuda":
        for backend in (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
        ):
            name = f"attention kernel {backend.name.removesuffix('_ATTENTION').lower()}"
            found.append(replace(everything, name=name, options={"attention": BackendAttention(backend)}))
    found += [
        replace(everything, name=f"recompute={how}", options={"recompute": how})
        for how in ("selective", "full")
    ]
    if setting.device.type == "cuda" and torch.cuda.get_device_capability() >= CAPABILITY:
        found.append(replace(everything, name="fp8=true", fp8=True))
    found.append(replace(everything, name="fp32 (TF32 products)", setting=replace(setting, precision="fp32")))
    return found


def step_of(variant: Variant) -> Callable[[], None]:
    """Build the training step of a variant."""
    network = rfdit_network(variant.setting, **variant.options)
    backbone = network.backbone
    if variant.separate_modulations:
        assert isinstance(backbone, HasModulation)
        backbone.modulation = SeparateModulations(backbone.modulation).to(variant.setting.device)
    average = copy.deepcopy(network).requires_grad_(False)
    if variant.fp8:
        use_fp8(backbone)
    if variant.setting.compile:
        compile_blocks(backbone)
    return network_step(
        variant.setting, network, average, *optimizer_of(network, fused=variant.fused_optimizer)
    )


def optimizer_of(network: Network, *, fused: bool) -> Any:
    """rfdit's optimiser and schedule, or the same with PyTorch's default implementation of AdamW."""
    make = AdamW(lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0, schedule=ConstantSchedule())
    if fused:
        return make(network)
    optimizer = torch.optim.AdamW(make.groups(network), LEARNING_RATE, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def time_variant(variant: Variant, *, repeats: int, warmup: int) -> tuple[float, float, float]:
    """Median seconds of a step, median matrix-product peak, and peak device memory in GB (0 on a CPU)."""
    setting = variant.setting
    cuda = setting.device.type == "cuda"
    step = step_of(variant)
    for _ in range(warmup):
        step()
    synchronize(setting.device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        step()
        most = torch.cuda.max_memory_allocated() / 1e9
    times, peaks = [], []
    for _ in range(repeats):
        times.append(seconds(step, setting.device))
        peaks.append(matmul_peak(setting.device, setting.dtype, repeats=3))
    return statistics.median(times), statistics.median(peaks), most if cuda else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="xl")
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[128], help="batch sizes; the variants use the first"
    )
    parser.add_argument("--only", nargs="+", help="substrings of the names of variants; all by default")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    device = torch.device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    precision = "bf16" if multiplies_bf16_fast(device) else "fp32"
    setting = Setting(args.size, args.patch, args.batch[0], precision, device, True)
    chosen = variants(setting)
    if args.only:
        chosen = [v for v in chosen if any(part in v.name for part in args.only)]
    chosen += [Variant(f"batch {n}", replace(setting, batch=n)) for n in args.batch[1:]]
    print(f"torch {torch.__version__} on {where}; {setting}", flush=True)
    base = None
    for variant in chosen:
        adaln_operators.TRITON = variant.adaln_kernels
        try:
            took, peak, memory = time_variant(variant, repeats=args.repeats, warmup=args.warmup)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            print(f"  {variant.name:34s} failed: {str(error).splitlines()[0][:120]}", flush=True)
            continue
        finally:
            gc.collect()
            torch._dynamo.reset()
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                torch.cuda.empty_cache()
        rate = step_operations(variant.setting) / took
        per_image = took / variant.setting.batch
        base = base or per_image
        print(
            f"  {variant.name:34s} {1e3 * took:8.1f} ms  {1 / per_image:8.1f} images/s"
            f"  {rate / 1e12:7.2f} of {peak / 1e12:7.2f} TFLOP/s, MFU {rate / peak:6.1%}"
            f"  {per_image / base:5.2f} of the first  {memory:5.1f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
