"""CPU seconds of processes from their start: what imports cost, and a run of one step.

    python benchmarks/start.py --repeats 3

Each row is a process of its own, in turns, measured by its user and system time with that of its children, which
depends less on a busy machine than a clock does. `lightning alone` is Lightning without rfdit, which imports all of
torchmetrics; after rfdit no more of torchmetrics is imported than is used (`rfdit/processes/lazy_packages.py`).
Medians, smallest and largest are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = [
    "size=tiny", "trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.precision=fp32", "data.num_workers=0",
    "data.batch_size=4", "data.shards.samples=512", "callbacks.grid=null", "callbacks.throughput=null",
    "trainer.val_every_n_steps=null",
]  # fmt: skip
ROWS = {
    "torch": ["-c", "import torch"],
    "lightning alone": ["-c", "import lightning"],
    "lightning after rfdit": ["-c", "import rfdit, lightning"],
    "rfdit train, one step": [str(ROOT / "train.py"), *SMALL],
}


def cpu_seconds(arguments: list[str], folder: Path) -> float:
    """User and system seconds of a Python process and its children."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder),
    }
    before = os.times()
    subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for (
            arguments
        ) in ROWS.values():  # files that are read for the first time, and the shapes that are drawn
            cpu_seconds(arguments, Path(name))
        found = [
            {row: cpu_seconds(arguments, Path(name)) for row, arguments in ROWS.items()}
            for _ in range(args.repeats)
        ]
    for row in ROWS:
        seconds = [once[row] for once in found]
        print(f"{row:<24} {statistics.median(seconds):6.1f} s  ({min(seconds):.1f} to {max(seconds):.1f})")


if __name__ == "__main__":
    main()
