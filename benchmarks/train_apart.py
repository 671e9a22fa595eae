"""Time training steps as users run them: rfdit's and the usual loop, each in a process of its own.

    python benchmarks/train_apart.py --size s b --patch 4 --batch 16 --precision bf16

The steps are those of benchmarks/train_step.py. There one process runs both, with one setting of the allocator.
Here rfdit's process keeps freed memory and compiles the blocks, as train.py does on a CPU with compile=true, and
diffusers' process has PyTorch's defaults. They take turns, one step at a time while the other waits, and a third
process measures the matrix-product peak in between.
"""

import argparse
import multiprocessing as mp
import statistics
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch
from train_step import SIZES, Setting, diffusers_step, report, rfdit_step, seconds

from rfdit.cost.count import matmul_peak
from rfdit.device import keep_freed_memory


def serve(name: str, setting: Setting, requests: Connection) -> None:
    """Answer every message with the seconds of one step, until the message is None."""
    if name == "rfdit":
        keep_freed_memory()
    step = rfdit_step(setting) if name == "rfdit" else diffusers_step(setting)
    while requests.recv() is not None:
        requests.send(seconds(step, setting.device))


@dataclass
class Contender:
    """A process that runs one step for each request."""

    name: str
    process: SpawnProcess
    connection: Connection

    @classmethod
    def start(cls, name: str, setting: Setting) -> "Contender":
        context = mp.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(name, setting, there), daemon=True)
        process.start()
        there.close()  # so that the end of the process raises an error here
        return cls(name, process, here)

    def step(self) -> float:
        try:
            self.connection.send(True)
            return float(self.connection.recv())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise SystemExit(f"error: the process of {self.name} has ended; see its output above") from None

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


def compare(setting: Setting, *, repeats: int, warmup: int) -> None:
    """Print the median time of both steps, their ratio, and the share of the peak that each reaches."""
    contenders = {
        "rfdit": Contender.start("rfdit", setting),
        "diffusers": Contender.start("diffusers", replace(setting, compile=False)),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    peaks = []
    for repeat in range(warmup + repeats):
        for name, contender in contenders.items():
            taken = contender.step()
            if repeat >= warmup:
                times[name].append(taken)
        if repeat >= warmup:
            peaks.append(matmul_peak(setting.device, setting.dtype))
    for contender in contenders.values():
        contender.stop()
    report(setting, times, statistics.median(peaks))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["s", "b"])
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=8)
    args = parser.parse_args()
    print(f"torch {torch.__version__} on {torch.get_num_threads()} CPU threads, one process each")
    for size in args.size:
        setting = Setting(size, args.patch, args.batch, args.precision, torch.device("cpu"), compile=True)
        compare(setting, repeats=args.repeats, warmup=args.warmup)


if __name__ == "__main__":
    main()
