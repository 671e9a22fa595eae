"""Times what averages of the weights add to a training step.

    python benchmarks/ema.py --size s --patch 4 --batch 16 --precision bf16

The step is rfdit's of benchmarks/train_step.py, which has one average in it. After each, in the same
process, the update of one and of three averages is timed by itself, on a network of the same shape:
so each meets caches that a step has just swept. Medians are printed, and each update's share of the
step that it is part of. The three of `ema=power`, which are updated at every fifth step, are timed
over five steps, a fifth of which counts. On a CPU freed memory is kept, as by train.py.
"""

import argparse
import statistics

import torch
from train_step import CLASSES, LATENT, SIZES, Setting, rfdit_step, seconds

from rfdit.conditioning import LabelConditioner
from rfdit.ema import Averages, FixedDecay, PowerFunction
from rfdit.model import DiT
from rfdit.network import Network
from rfdit.training.memory import keep_freed_memory

ONE = {"ema": FixedDecay()}
THREE = ONE | {"power_05": PowerFunction(std=0.05), "power_10": PowerFunction(std=0.10)}
EVERY = 5  # of conf/ema/power.yaml


def started(setting: Setting, profiles: dict[str, FixedDecay | PowerFunction]) -> Averages:
    """Averages of a network of the step's shape, ready to be updated."""
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
    """Prints the median times of a step and of its averages' update, and their shares."""
    step, one, three = rfdit_step(setting), started(setting, ONE), started(setting, THREE)

    def some_steps() -> None:
        for step in range(1, EVERY + 1):
            three.update(due=step == EVERY)

    rarely = f"three, every {EVERY}th step"
    timed = {"step": step, "one average": one.update, "three averages": three.update, rarely: some_steps}
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
