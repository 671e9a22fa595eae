"""Time a training step of rfdit's DiT and of diffusers' DiTTransformer2DModel of the same shape.

    python benchmarks/train_step.py --size s b --patch 4 --batch 16 --precision bf16

A step is forward, backward, optimiser and EMA on 4 x 32 x 32 latents with 1000 classes. rfdit's step is built
from the parts that training uses; diffusers' is the usual loop around its model: AdamW with PyTorch's default
arguments, one EMA update per tensor, the same autocast. Both run in one process, in turns, with the
matrix-product peak measured in between, so that other work on the machine slows all of them alike. Medians are
printed.

MFU is the share of that peak, counting six operations for each multiply-add of the forward pass.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import ProfilerActivity, profile

from rfdit.batch import Condition
from rfdit.conditioning import LabelConditioner, drop_condition
from rfdit.cost.count import count_macs, matmul_peak
from rfdit.device import keep_freed_memory
from rfdit.model import DiT
from rfdit.model.acceleration import compile_blocks
from rfdit.model.routing import draw_route, routed
from rfdit.network import Network
from rfdit.objective import TREAD, IndependentCoupling, UniformTime, VelocityMatching
from rfdit.protocols import Routing
from rfdit.randomness import SampleGenerator
from rfdit.training.optim import AdamW, ConstantSchedule

SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
LATENT, CLASSES, LEARNING_RATE, DECAY, DROP = (4, 32, 32), 1000, 1e-4, 0.9999, 0.1

# Groups of kernels in the profile, by substrings of their names; the first match counts.
GROUPS = {
    "attention": ("scaled_dot_product", "sdpa", "flash", "fmha", "softmax"),
    "fused by the compiler": ("triton_",),
    "matrix products": ("nvjet", "cutlass", "cublas", "mm", "linear", "gemm", "matmul"),
    "optimiser and EMA": ("multi_tensor", "adam", "lerp", "foreach", "sqrt", "addcdiv", "mul_", "add_"),
    "norms": ("layer_norm", "rms_norm"),
    "activations": ("gelu", "silu"),
    "copies and casts": ("copy", "_to_copy", "cat", "clone", "fill", "zero", "contiguous"),
    "sums": ("sum", "mean"),
    "elementwise": ("add", "mul", "sub", "pow", "addcmul", "div", "neg"),
}


@dataclass(frozen=True)
class Setting:
    """The shape and precision that are timed."""

    size: str
    patch: int
    batch: int
    precision: str
    device: torch.device
    compile: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def __str__(self) -> str:
        compiled = ", blocks compiled" if self.compile else ""
        return f"{self.size.upper()}/{self.patch} batch {self.batch} {self.precision}{compiled}"


def rfdit_network(setting: Setting, **options: Any) -> Network:
    """The class-conditional DiT that is trained; options are further arguments of the DiT."""
    width, depth, num_heads = SIZES[setting.size]
    with setting.device:  # a GPU initialises the weights of XL much faster
        backbone = DiT(
            width=width,
            depth=depth,
            num_heads=num_heads,
            patch_size=setting.patch,
            in_channels=LATENT[0],
            input_size=LATENT[1],
            **options,
        )
        conditioner = LabelConditioner(num_classes=CLASSES, width=width, drop=DROP)
    return Network(backbone=backbone, conditioner=conditioner).to(setting.device)


def rfdit_step(setting: Setting, routing: Routing | None = None) -> Callable[[], None]:
    """A training step of rfdit, in which tokens may pass blocks by."""
    network = rfdit_network(setting)
    average = copy.deepcopy(network).requires_grad_(False)
    if setting.compile:
        compile_blocks(network.backbone)
    optimizer, schedule = AdamW(
        lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0, schedule=ConstantSchedule()
    )(network)
    return network_step(setting, network, average, optimizer, schedule, routing)


def network_step(
    setting: Setting,
    network: Network,
    average: Network,
    optimizer: Optimizer,
    schedule: LambdaLR,
    routing: Routing | None = None,
) -> Callable[[], None]:
    """Forward, backward, optimiser and EMA of a network, compiled or not."""
    trained = [
        (mean, weight)
        for mean, weight in zip(average.parameters(), network.parameters())
        if weight.requires_grad
    ]
    means, weights = [mean for mean, _ in trained], [weight for _, weight in trained]
    objective = VelocityMatching(time=UniformTime(), coupling=IndependentCoupling())
    latents, labels = samples(setting)
    keys = torch.arange(setting.batch, device=setting.device)

    def step() -> None:
        generator = SampleGenerator(seed=0, keys=keys, purpose="train")
        with setting.autocast():
            cond = network.conditioner(labels, device=setting.device)
            null = network.conditioner.null(device=setting.device)
            cond = drop_condition(cond, null, probability=DROP, generator=generator.fork("drop"))
            route = draw_route(routing, network.backbone, LATENT[1:], generator=generator)
            with routed(network.backbone, route):
                loss = objective(network.backbone, latents, cond, generator=generator).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(means, weights, 1 - DECAY)

    return step


def diffusers_step(setting: Setting) -> Callable[[], None]:
    """A training step as usually written around diffusers' model, which drops labels itself."""
    from diffusers import DiTTransformer2DModel

    width, depth, num_heads = SIZES[setting.size]
    network = DiTTransformer2DModel(
        num_attention_heads=num_heads,
        attention_head_dim=width // num_heads,
        num_layers=depth,
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        sample_size=LATENT[1],
        patch_size=setting.patch,
        num_embeds_ada_norm=CLASSES,
    ).to(setting.device)
    network.train()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    z0, labels = samples(setting)

    def step() -> None:
        z1 = torch.randn_like(z0)
        t = torch.rand(setting.batch, device=setting.device)
        z_t = z0 + t[:, None, None, None] * (z1 - z0)
        with setting.autocast():
            v = network(z_t, timestep=1000 * t, class_labels=labels).sample
            loss = F.mse_loss(v.float(), z1 - z0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), network.parameters()):
                mean.mul_(DECAY).add_(weight, alpha=1 - DECAY)

    return step


def samples(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of latents and labels."""
    latents = torch.randn(setting.batch, *LATENT, device=setting.device)
    return latents, torch.randint(CLASSES, (setting.batch,), device=setting.device)


def step_operations(setting: Setting) -> int:
    """Floating-point operations of a step's matrix products."""
    width, depth, num_heads = SIZES[setting.size]
    with torch.device("meta"):
        network = DiT(
            width=width,
            depth=depth,
            num_heads=num_heads,
            patch_size=setting.patch,
            in_channels=LATENT[0],
            input_size=LATENT[1],
        )
        cond = Condition(pooled=torch.empty(1, width))
    return 6 * setting.batch * count_macs(network, LATENT, cond)


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Seconds that a step takes until the device has finished it."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(setting: Setting, *, repeats: int, warmup: int) -> None:
    """Print the median time of both steps, their ratio, and the share of the peak that each reaches."""
    steps = {"rfdit": rfdit_step(setting), "diffusers": diffusers_step(setting)}
    for step in steps.values():
        for _ in range(warmup):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    peaks = []
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(seconds(step, setting.device))
        peaks.append(matmul_peak(setting.device, setting.dtype))
    report(setting, times, statistics.median(peaks))


def compare_routing(setting: Setting, *, repeats: int, warmup: int) -> None:
    """Print the median times of steps without and with routing=tread, in turns, and their ratio."""
    steps = {"all tokens": rfdit_step(setting), "tread": rfdit_step(setting, TREAD())}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(warmup + repeats):
        for name, step in steps.items():
            times[name].append(seconds(step, setting.device))
    medians = [statistics.median(values[warmup:]) for values in times.values()]
    print(f"\n{setting}, {(LATENT[1] // setting.patch) ** 2} tokens")
    for name, median in zip(steps, medians):
        print(f"  {name:10s} {median:8.3f} s  (fastest {min(times[name][warmup:]):.3f})")
    print(f"  ratio      {medians[0] / medians[1]:8.2f}")


def report(setting: Setting, times: dict[str, list[float]], peak: float) -> None:
    """Print the medians of `times` in seconds, and their rates relative to a peak in operations per second."""
    operations = step_operations(setting)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{setting}: {operations / 1e9:.1f} GFLOP a step, peak {peak / 1e9:.0f} GFLOP/s")
    for name, median in medians.items():
        rate = operations / median
        print(
            f"  {name:10s} {1e3 * median:8.1f} ms  (fastest {1e3 * min(times[name]):.1f})"
            f"  {rate / 1e9:8.1f} GFLOP/s  MFU {rate / peak:.1%}"
        )
    print(f"  ratio      {medians['diffusers'] / medians['rfdit']:8.2f}")


def show_profile(setting: Setting, *, steps: int, warmup: int) -> None:
    """Print where the time of rfdit's step goes: by group of kernels, then the kernels themselves."""
    step = rfdit_step(setting)
    for _ in range(warmup):
        step()
    cuda = setting.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        for _ in range(steps):
            step()
        synchronize(setting.device)
    # On a GPU only the kernels count; the operations that launch them would count the time twice.
    events = [e for e in recorded.key_averages() if not cuda or e.device_type == DeviceType.CUDA]
    milliseconds = {
        event.key: (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3 / steps
        for event in events
    }
    total = sum(milliseconds.values())
    groups = dict.fromkeys([*GROUPS, "other"], 0.0)
    for key, value in milliseconds.items():
        matches = (group for group, parts in GROUPS.items() if any(part in key.lower() for part in parts))
        groups[next(matches, "other")] += value
    print(f"\n{setting}: {total:.1f} ms a step under the profiler")
    for group, value in sorted(groups.items(), key=lambda item: -item[1]):
        print(f"  {value:8.1f} ms  {value / total:6.1%}  {group}")
    print()
    for event in sorted(events, key=lambda event: -milliseconds[event.key])[:30]:
        print(f"  {milliseconds[event.key]:8.1f} ms  {event.count // steps:5d} calls  {event.key[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["s", "b"])
    parser.add_argument("--patch", nargs="+", type=int, default=[4])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile each of rfdit's blocks")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="keep freed memory, as train.py does",
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--tread", action="store_true", help="compare with routing=tread instead")
    parser.add_argument("--profile", action="store_true", help="print where rfdit's time goes instead")
    args = parser.parse_args()
    if args.keep_memory:
        keep_freed_memory()
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"torch {torch.__version__} on {where}{', freed memory kept' if args.keep_memory else ''}")
    for precision in args.precision:
        for size in args.size:
            for patch in args.patch:
                setting = Setting(size, patch, args.batch, precision, device, args.compile)
                if args.profile:
                    show_profile(setting, steps=args.repeats, warmup=args.warmup)
                elif args.tread:
                    compare_routing(setting, repeats=args.repeats, warmup=args.warmup)
                else:
                    compare(setting, repeats=args.repeats, warmup=args.warmup)


if __name__ == "__main__":
    main()
