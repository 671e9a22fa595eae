"""Time sampling with rfdit and with diffusers' pipeline of the same weights.

    python benchmarks/sample.py --model dit mmdit --size s b --patch 4 --batch 16 --precision bf16
    python benchmarks/sample.py --costs --size s

The weights are random and none of them zero. `rfdit export format=diffusers` writes them into a folder, which
DiffusionPipeline loads in the measured precision; rfdit loads them as sample.py does. Both take the same Euler
steps with classifier-free guidance, from the same noise to latents of 4 x 32 x 32, for 1000 classes or one
caption. The autoencoder, which is the same on both sides, is left out. Both run in one process, in turns, with
the matrix-product peak measured in between; medians are printed, and the largest difference of the latents.

`--costs` measures the time per image of each guidance and each solver, in turns as well. The guide of
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

from rfdit.autoencoder.identity import IdentityAutoencoder
from rfdit.batch import Condition
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import build_network
from rfdit.cost.count import count_macs, matmul_peak
from rfdit.device import keep_freed_memory
from rfdit.generate.load import PipelineSettings, load_pipeline
from rfdit.interchange.for_diffusers.folder import write_diffusers_folder
from rfdit.sampler import (
    RK4,
    AdaptiveProjected,
    AdaptiveSolver,
    Autoguidance,
    CFGRescale,
    CFGZeroStar,
    ClassifierFree,
    Dopri5,
    Euler,
    EulerMaruyama,
    Guidance,
    GuidanceInterval,
    HasGuide,
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

SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
LATENT, CLASSES, CAPTION = (4, 32, 32), 1000, "a small red circle left of a large blue square"
TOKEN_WIDTH, TOKENS = 64, 16  # as in conf/text_encoder/bpe.yaml
SCALE = 3.0


@dataclass(frozen=True)
class Setting:
    """The shape and precision that are timed."""

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
        """A batch of labels, or of copies of one caption."""
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
    """A saved run of such a network, with random weights, none of them zero."""
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
        "prediction": {"_target_": "rfdit.model.VelocityPrediction"},
    }
    network = build_network(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    latents = IdentityAutoencoder().contract.as_dict()
    return SavedRun(Path("random"), 0, config, latents, network.state_dict(), {})


def rfdit_pipeline(setting: Setting, saved: SavedRun) -> Pipeline:
    """The pipeline, loaded as by sample.py."""
    settings = PipelineSettings(
        sampler=Sampler(solver=Euler(), guidance=ClassifierFree(scale=SCALE), steps=setting.steps),
        weights="raw",
        accelerator="gpu" if setting.device.type == "cuda" else "cpu",
        precision=setting.precision,
        batch_size=setting.batch,
        compile=setting.compile,
    )
    return load_pipeline(saved, settings)


def by_rfdit(setting: Setting, pipeline: Pipeline) -> Callable[[Tensor], Tensor]:
    """A function from noise to latents, including the conditions."""
    generator = pipeline.generator(0, range(setting.batch))

    def run(noise: Tensor) -> Tensor:
        return pipeline.sample(generator, setting.inputs, pipeline.conditions(setting.inputs), z_t=noise)

    return run


def by_diffusers(setting: Setting, saved: SavedRun, folder: Path) -> Callable[[Tensor], Tensor]:
    """The same by the pipeline that rfdit exports for diffusers."""
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
    if setting.model == "mmdit":  # its pipeline takes one caption at a time
        inputs, more = (CAPTION,), {"num_images_per_prompt": setting.batch}

    def run(noise: Tensor) -> Tensor:
        result: Tensor = pipeline(
            *inputs,
            num_inference_steps=setting.steps,
            guidance_scale=SCALE,
            latents=noise,
            output_type="latent",
            **more,
        ).images
        return result

    return run


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes until the device has finished it."""
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
    """Median time of each run over `repeats` turns, after one as a warm-up, and the median matrix-product peak."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks = []
    for turn in range(repeats + 1):
        for name, run in runs.items():
            took = seconds(run, setting.device)
            times[name] += [took] if turn else []
        peaks.append(matmul_peak(setting.device, setting.dtype))
    return {name: statistics.median(values) for name, values in times.items()}, statistics.median(peaks)


def macs(setting: Setting, pipeline: Pipeline) -> int:
    """Multiply-adds of one evaluation for one latent, without the padding of its caption."""
    cond: Condition = pipeline.conditions(setting.inputs)(setting.inputs[:1])
    return count_macs(pipeline.network.backbone, LATENT, without_padding(cond))


def compare(setting: Setting, *, repeats: int) -> None:
    """Print the images/s of both pipelines, their ratio, and the difference of their latents."""
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
    """The guidances, by their names in conf/guidance."""
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
    """Print the time per image of each guidance (with Euler's method) and each solver (with cfg)."""
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
            steps=1 if isinstance(solver, AdaptiveSolver) else setting.steps,
            grid=LastStepGrid() if isinstance(solver, StochasticSolver) else UniformGrid(),
        )
        for name, solver in SOLVERS.items()
    }
    runs: dict[str, Callable[[], object]] = {}
    for name, sampler in samplers.items():
        other = pipeline.with_sampler(sampler)
        if isinstance(sampler.guidance, HasGuide):
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
    """Print the kernels that take the most time, for both pipelines."""
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
    parser.add_argument("--costs", action="store_true", help="measure guidances and solvers instead")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
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
