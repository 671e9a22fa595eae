"""Training steps under several ways in which OpenMP's threads wait for each other, beside busy processes and without.

    python benchmarks/waiting_threads.py --size s --patch 8 --batch 4 --busy 0 1

A matrix product ends when the last of its threads has finished, and the others either spin or sleep until then.
A spinning thread takes the core that the last one needs as soon as something else wants a core too. Each way
(`WAYS`) has a fresh process, since OpenMP reads it once, when it is loaded; the processes take turns, one step of
benchmarks/train_step.py at a time. --busy: numbers of endless loops, in processes of their own, that run beside
them. Medians are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from train_apart import Contender
from train_step import SIZES, Setting

from rfdit.processes.threads import WAITING

WAYS: dict[str, Mapping[str, str]] = {
    "spin, libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin briefly, rfdit's default": WAITING,
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def start(variables: Mapping[str, str], setting: Setting) -> Contender:
    """A process with these variables, and with none of the other ways'."""
    before = dict(os.environ)
    for name in {name for way in WAYS.values() for name in way}:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        return Contender.start("rfdit", setting)
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Context beside which so many endless loops run."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(setting: Setting, *, processes: int, repeats: int, warmup: int) -> dict[str, float]:
    """The median milliseconds of a step, by way."""
    contenders = {name: start(variables, setting) for name, variables in WAYS.items()}
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    with busy(processes):
        for repeat in range(warmup + repeats):
            for name, contender in contenders.items():
                taken = contender.step()
                if repeat >= warmup:
                    times[name].append(1e3 * taken)
    for contender in contenders.values():
        contender.stop()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="s")
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--warmup", type=int, default=3)
    args = parser.parse_args()
    setting = Setting(args.size, args.patch, args.batch, args.precision, torch.device("cpu"), compile=False)
    cores = len(os.sched_getaffinity(0))
    print(
        f"torch {torch.__version__}, {args.size.upper()}/{args.patch} {args.precision} batch {args.batch}, ",
        end="",
    )
    print(f"{cores} cores; load {os.getloadavg()[0]:.1f} before the measurement")
    for processes in args.busy:
        found = measure(setting, processes=processes, repeats=args.repeats, warmup=args.warmup)
        print(f"beside {processes} busy process{'es' * (processes != 1)}")
        for name, milliseconds in found.items():
            print(f"  {name:<30} {milliseconds:8.1f} ms", flush=True)


if __name__ == "__main__":
    main()
