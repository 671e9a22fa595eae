"""Time that averages of the weights add to a training step.

    python benchmarks/ema.py --size s --patch 4 --batch 16 --precision bf16

The step is that of rfdit in benchmarks/train_step.py, which includes one average. After each step, in the same
process, the updates of one and of three averages are timed alone, on a network of the same shape, so that each
finds the caches as a step has left them. Medians are printed, and the share of each update in the step that it
is part of. The three averages of `ema=power`, which are updated at every fifth step, are timed over five steps,
and a fifth of that time is reported. On a CPU freed memory is kept, as by train.py.
"""

import argparse
import statistics

import torch
from train_step import CLASSES, LATENT, SIZES, Setting, rfdit_step, seconds

from rfdit.conditioning import LabelConditioner
from rfdit.device import keep_freed_memory
from rfdit.ema import Averages, FixedDecay, PowerFunction
from rfdit.model import DiT
from rfdit.network import Network

ONE = {"ema": FixedDecay()}
THREE = ONE | {"power_05": PowerFunction(std=0.05), "power_10": PowerFunction(std=0.10)}
EVERY = 5  # as in conf/ema/power.yaml


def start_averages(setting: Setting, profiles: dict[str, FixedDecay | PowerFunction]) -> Averages:
    """Averages of a network with the shape of the step's, ready to be updated."""
    width, depth, num_heads = SIZES[setting.size]
    backbone = DiT(
        width=width,
        depth=depth,
        num_heads=num_heads,
        patch_size=setting.patch,
        in_channels=LATENT[0],
        input_size=LATENT[1],
    )
    network = Network(backbone=backbone, conditioner=LabelConditioner(num_classes=CLASSES, width=width))
    network.to(setting.device)
    averages = Averages(network=network, profiles=profiles)
    averages.to(setting.device)
    averages.start(network, {})
    return averages


def measure(setting: Setting, *, repeats: int, warmup: int) -> None:
    """Print the median times of a step and of the updates of its averages, and their shares."""
    step, one, three = rfdit_step(setting), start_averages(setting, ONE), start_averages(setting, THREE)

    def several_steps() -> None:
        for step in range(1, EVERY + 1):
            three.update(due=step == EVERY)

    rarely = f"three, every {EVERY}th step"
    timed = {"step": step, "one average": one.update, "three averages": three.update, rarely: several_steps}
    times: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(warmup + repeats):
        for name, function in timed.items():
            taken = seconds(function, setting.device)
            if repeat >= warmup:
                times[name].append(taken / EVERY if name == rarely else taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rest = medians.pop("step") - medians["one average"]
    print(f"\n{setting}: {1e3 * rest:.1f} ms a step without averages")
    for name, median in medians.items():
        print(
            f"  {name:22s} {1e3 * median:8.2f} ms  (fastest {1e3 * min(times[name]):.2f})"
            f"  {median / (rest + median):6.2%} of the step with them"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["s"])
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--compile", action="store_true", help="torch.compile each block")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    args = parser.parse_args()
    keep_freed_memory()
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    for size in args.size:
        setting = Setting(size, args.patch, args.batch, args.precision, torch.device(name), args.compile)
        measure(setting, repeats=args.repeats, warmup=args.warmup)


if __name__ == "__main__":
    main()
