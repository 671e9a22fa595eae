"""Times sampling with rfdit against diffusers' pipeline of the same weights.

    python benchmarks/sample.py --model dit mmdit --size s b --patch 4 --batch 16 --precision bf16
    python benchmarks/sample.py --costs --size s

The weights are random, and all of them at work. `rfdit.export format=diffusers` writes them into a
folder, which DiffusionPipeline loads in the precision that is measured; rfdit loads them as sample.py
does. Both take the same Euler steps with classifier-free guidance, from the same noise to latents of
4 x 32 x 32, for 1000 classes or one caption; the autoencoder, which is the same one on either side, is
left out. Both run in one process, in turns, with the matrix-product peak measured between them, and
medians are printed, with the largest difference of their latents.

`--costs` measures what each guidance and each solver takes per image, in turns as well. The guide of
autoguidance has half the width and half the depth.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rfdit.batch import Condition
from rfdit.config import build_network
from rfdit.interchange.diffusers_folder import write_diffusers_folder
from rfdit.model.cost import count_macs
from rfdit.sampler import (
    RK4,
    AdaptiveProjected,
    Autoguidance,
    CFGRescale,
    CFGZeroStar,
    ClassifierFree,
    Dopri5,
    Euler,
    EulerMaruyama,
    Guidance,
    GuidanceInterval,
    Heun,
    LastStepGrid,
    Midpoint,
    NoGuidance,
    Pipeline,
    Sampler,
    SigmaDiffusion,
    Solver,
    StochasticSolver,
    UniformGrid,
)
from rfdit.sampler.guidance import without_padding
from rfdit.sampling.load import load_pipeline
from rfdit.training.checkpoint import SavedRun
from rfdit.training.memory import keep_freed_memory
from rfdit.training.peak import matmul_peak

SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
LATENT, CLASSES, CAPTION = (4, 32, 32), 1000, "a small red circle left of a large blue square"
TOKEN_WIDTH, TOKENS = 64, 16  # of conf/text_encoder/bpe.yaml
SCALE = 3.0


@dataclass(frozen=True)
class Setting:
    """What is timed."""

    model: str
    size: tuple[int, int, int]
    patch: int
    batch: int
    steps: int
    precision: str
    device: torch.device
    compile: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def inputs(self) -> list[Any]:
        """A batch of labels, or one caption as often."""
        if self.model == "mmdit":
            return [CAPTION] * self.batch
        return torch.randint(CLASSES, (self.batch,), generator=torch.Generator().manual_seed(0)).tolist()

    def __str__(self) -> str:
        width, depth, _ = self.size
        compiled = ", rfdit's blocks compiled" if self.compile else ""
        return (
            f"{self.model} {width} wide, {depth} deep, patch {self.patch}, batch {self.batch}, "
            f"{self.steps} steps, {self.precision}{compiled}"
        )


def random_run(setting: Setting) -> SavedRun:
    """What a checkpoint of such a network would say, with weights at random and none of them zero."""
    width, depth, num_heads = setting.size
    shape = {"width": width, "depth": depth, "num_heads": num_heads, "patch_size": setting.patch}
    model: dict[str, Any] = shape | {"in_channels": LATENT[0], "input_size": LATENT[1]}
    encoder = {"_target_": "rfdit.text_encoder.bpe.BPEEncoder", "width": TOKEN_WIDTH, "length": TOKENS}
    if setting.model == "dit":
        model["_target_"] = "rfdit.model.DiT"
        conditioner = {
            "_target_": "rfdit.conditioning.LabelConditioner",
            "num_classes": CLASSES,
            "width": width,
        }
    else:
        model |= {"_target_": "rfdit.model.MMDiT", "pooled_width": TOKEN_WIDTH, "token_width": TOKEN_WIDTH}
        conditioner = {"_target_": "rfdit.conditioning.TextConditioner", "encoder": encoder}
    config = {
        "model": model,
        "conditioner": conditioner,
        "text_encoder": encoder,
        "autoencoder": {"_target_": "rfdit.autoencoder.identity.IdentityAutoencoder"},
        "sampler": {"shift": 1.0},
    }
    network = build_network(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return SavedRun(Path("random"), 0, config, {}, network.state_dict(), {})


def rfdit_pipeline(setting: Setting, saved: SavedRun) -> Pipeline:
    """As sample.py loads it."""
    config = {
        "sampler": {
            "_target_": "rfdit.sampler.Sampler",
            "solver": {"_target_": "rfdit.sampler.Euler"},
            "guidance": {"_target_": "rfdit.sampler.ClassifierFree", "scale": SCALE},
            "steps": setting.steps,
        },
        "weights": "raw",
        "accelerator": "gpu" if setting.device.type == "cuda" else "cpu",
        "precision": setting.precision,
        "batch_size": setting.batch,
        "compile": setting.compile,
        "autoencoder": {"source": None},
        "text_encoder": {"source": None},
    }
    return load_pipeline(saved, config)


def by_rfdit(setting: Setting, pipeline: Pipeline) -> Callable[[Tensor], Tensor]:
    """Noise to latents, the conditions included."""
    generator = pipeline.generator(0, range(setting.batch))

    def run(noise: Tensor) -> Tensor:
        return pipeline.sample(generator, setting.inputs, pipeline.conditions(setting.inputs), z_t=noise)

    return run


def by_diffusers(setting: Setting, saved: SavedRun, folder: Path) -> Callable[[Tensor], Tensor]:
    """The same with the pipeline that rfdit's export writes for diffusers."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    write_diffusers_folder(folder, saved, "raw")
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, low_cpu_mem_usage=False).to(
        setting.device, setting.dtype
    )
    pipeline.set_progress_bar_config(disable=True)
    inputs: tuple[Any, ...] = (setting.inputs,)
    more = {}
    if setting.model == "mmdit":  # which takes one caption at a time
        inputs, more = (CAPTION,), {"num_images_per_prompt": setting.batch}

    def run(noise: Tensor) -> Tensor:
        result: Tensor = pipeline(
            *inputs, setting.steps, SCALE, latents=noise, output_type="latent", **more
        ).images
        return result

    return run


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, until the device is done with it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def medians(
    runs: dict[str, Callable[[], object]], setting: Setting, *, repeats: int
) -> tuple[dict[str, float], float]:
    """Each one's median time over `repeats` turns after one that does not count, and the median peak."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks = []
    for turn in range(repeats + 1):
        for name, run in runs.items():
            took = seconds(run, setting.device)
            times[name] += [took] if turn else []
        peaks.append(matmul_peak(setting.device, setting.dtype))
    return {name: statistics.median(values) for name, values in times.items()}, statistics.median(peaks)


def macs(setting: Setting, pipeline: Pipeline) -> int:
    """Multiply-adds of an evaluation for one latent, without the padding of its caption."""
    cond: Condition = pipeline.conditions(setting.inputs)(setting.inputs[:1])
    return count_macs(pipeline.network.backbone, LATENT, without_padding(cond))


def compare(setting: Setting, *, repeats: int) -> None:
    """Prints both pipelines' images a second, their ratio, and how far their latents are apart."""
    saved = random_run(setting)
    pipeline = rfdit_pipeline(setting, saved)
    noise = torch.randn(setting.batch, *LATENT, generator=torch.Generator().manual_seed(1)).to(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "rfdit": by_rfdit(setting, pipeline),
            "diffusers": by_diffusers(setting, saved, Path(folder) / "pipeline"),
        }
    ours, theirs = (way(noise).float() for way in ways.values())
    runs = {name: functools.partial(way, noise) for name, way in ways.items()}
    times, peak = medians(runs, setting, repeats=repeats)
    operations = 2 * 2 * setting.steps * macs(setting, pipeline)  # guidance evaluates twice
    print(f"\n{setting}: {operations / 1e9:.1f} GFLOP an image, peak {peak / 1e9:.0f} GFLOP/s")
    for name, took in times.items():
        rate = setting.batch * operations / took
        print(
            f"  {name:10s} {setting.batch / took:8.3f} images/s  {1e3 * took / setting.steps:8.1f} ms a step"
            f"  {rate / 1e9:8.1f} GFLOP/s  {rate / peak:.1%} of the peak"
        )
    print(f"  ratio      {times['diffusers'] / times['rfdit']:8.2f}")
    print(
        f"  latents differ by at most {(ours - theirs).abs().max():.2g}, on average "
        f"{(ours - theirs).abs().mean():.2g}, and are up to {theirs.abs().max():.3g}"
    )


def guidances(guide: Pipeline) -> dict[str, Guidance]:
    """By their names in conf/guidance."""
    return {
        "none": NoGuidance(),
        "cfg": ClassifierFree(scale=SCALE),
        "cfg, batched=false": ClassifierFree(scale=SCALE, batched=False),
        "interval": GuidanceInterval(inside=ClassifierFree(scale=SCALE), low=0.0, high=0.7),
        "cfg_rescale": CFGRescale(scale=SCALE),
        "apg": AdaptiveProjected(scale=SCALE, momentum=-0.5),
        "cfg_zero_star": CFGZeroStar(scale=SCALE),
        "autoguidance": Autoguidance(scale=2.0, guide=guide.network.backbone),
    }


SOLVERS: dict[str, Solver | StochasticSolver] = {
    "euler": Euler(),
    "heun": Heun(),
    "midpoint": Midpoint(),
    "rk4": RK4(),
    "sde": EulerMaruyama(diffusion=SigmaDiffusion()),
    "dopri5, tolerance 1e-2": Dopri5(rtol=1e-2, atol=1e-2),
}


def costs(setting: Setting, *, repeats: int) -> None:
    """Prints what each guidance (with Euler's method) and each solver (with cfg) takes per image."""
    width, depth, num_heads = setting.size
    smaller = replace(setting, size=(width // 2, max(1, depth // 2), num_heads))
    pipeline, guide = (rfdit_pipeline(each, random_run(each)) for each in (setting, smaller))
    noise = torch.randn(setting.batch, *LATENT, generator=torch.Generator().manual_seed(1)).to(setting.device)
    samplers = {
        f"guidance={name}": Sampler(solver=Euler(), guidance=guidance, steps=setting.steps)
        for name, guidance in guidances(guide).items()
    } | {
        f"sampler={name}": Sampler(
            solver=solver,
            guidance=ClassifierFree(scale=SCALE),
            steps=1 if isinstance(solver, Dopri5) else setting.steps,
            grid=LastStepGrid() if isinstance(solver, StochasticSolver) else UniformGrid(),
        )
        for name, solver in SOLVERS.items()
    }
    runs: dict[str, Callable[[], object]] = {}
    for name, sampler in samplers.items():
        other = pipeline.with_sampler(sampler)
        if isinstance(sampler.guidance, Autoguidance):
            other.guide = guide.network.conditioner
        runs[name] = functools.partial(by_rfdit(setting, other), noise)
    times, peak = medians(runs, setting, repeats=repeats)
    print(f"\n{setting}, cost per image; peak {peak / 1e9:.0f} GFLOP/s")
    for name, took in times.items():
        print(
            f"  {name:32s} {1e3 * took / setting.batch:8.1f} ms  {samplers[name].evaluations:4d} evaluations  "
            f"{took / times['guidance=none']:5.2f} of guidance=none"
        )


def show_profile(setting: Setting) -> None:
    """Prints the kernels in which a picture's time goes, for both."""
    saved = random_run(setting)
    noise = torch.randn(setting.batch, *LATENT).to(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "rfdit": by_rfdit(setting, rfdit_pipeline(setting, saved)),
            "diffusers": by_diffusers(setting, saved, Path(folder) / "pipeline"),
        }
    cuda = setting.device.type == "cuda"
    for name, way in ways.items():
        way(noise)
        with profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        ) as recorded:
            way(noise)
        own = "self_device_time_total" if cuda else "self_cpu_time_total"
        events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, own))
        total = sum(getattr(event, own) for event in events) / 1e3 / setting.steps
        print(f"\n{setting}, {name}: {total:.1f} ms a step under the profiler")
        for event in events[:16]:
            took = getattr(event, own) / 1e3 / setting.steps
            print(f"  {took:8.2f} ms  {event.count / setting.steps:7.1f} calls  {event.key[:80]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=["dit", "mmdit"], default=["dit"])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["s", "b"])
    parser.add_argument("--patch", nargs="+", type=int, default=[4])
    parser.add_argument("--batch", nargs="+", type=int, default=[8])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile each of rfdit's blocks")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--costs", action="store_true", help="of guidances and solvers, instead")
    parser.add_argument("--profile", action="store_true", help="where the time goes, instead")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is on the hub
    keep_freed_memory()
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"torch {torch.__version__} on {where}, freed memory kept on both sides")
    for precision, model, size, patch, batch in product(
        args.precision, args.model, args.size, args.patch, args.batch
    ):
        setting = Setting(
            model, SIZES[size], patch, batch, args.steps, precision, device, compile=args.compile
        )
        if args.profile:
            show_profile(setting)
        else:
            (costs if args.costs else compare)(setting, repeats=args.repeats)


if __name__ == "__main__":
    main()
