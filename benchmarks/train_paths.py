"""Speed of training when images and captions are encoded in every step, once, or beforehand.

    python benchmarks/train_paths.py --shards '/data/emoji/*.tar' --taesd .../taesd --minilm .../minilm

The same model (experiment=emoji, not compiled) is trained through `train.py` in three ways:

- live: every step runs the autoencoder's encoder and the text encoder;
- memory: latents and caption features are cached in memory once they are computed (`cache_size`);
- shards: `rfdit encode` has written them, and data=latents reads them.

The three take turns, --repeats times. Images per second, MFU (the backbone's operations alone, as a share of the
matrix-product rate measured in the same run) and the share of time spent waiting for data are medians over the
rows of each run's metrics.csv, without those in which a cache is filled.
"""

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("speed/images_per_second", "speed/mfu", "speed/data_wait")
WINDOW = 10  # steps between two rows of metrics.csv


def run(*command: str) -> None:
    """Run a command of rfdit; exits with its output if it fails."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def windows(run_dir: Path, skip: int) -> list[dict[str, float]]:
    """The speeds of a run at each row of its log, without those of the first `skip` steps."""
    with (run_dir / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(COLUMNS[0]) and int(row["step"]) >= skip]
    return [{column: float(row[column]) for column in COLUMNS} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True)
    parser.add_argument("--taesd", required=True)
    parser.add_argument("--minilm", required=True)
    parser.add_argument(
        "--images", type=int, default=1851, help="images in the shards; one epoch fills the cache"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="measured steps of each run")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        encoders = [f"autoencoder.source={options.taesd}", f"text_encoder.source={options.minilm}"]
        run(
            "-m", "rfdit", "encode", f"out={folder / 'latents'}", f"data.shards={options.shards}",
            "data.resolution=128", "autoencoder=taesd", "text_encoder=minilm", "text_encoder.length=16", *encoders,
        )  # fmt: skip
        epoch = -(-options.images // options.batch)
        live, shards = f"data.shards={options.shards}", f"data.shards={folder / 'latents'}"
        off = ["autoencoder.cache_size=0", "text_encoder.cache_size=1"]  # one entry, for the empty caption
        ways: dict[str, tuple[list[str], int]] = {
            "live": ([live, *off], WINDOW),
            "memory": ([live], epoch),
            "shards": (["data=latents", shards, "data.resolution=128", *off], WINDOW),
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for repeat in range(options.repeats):
            for name, (settings, skip) in ways.items():
                run_dir = folder / f"{name}{repeat}"
                run(
                    "train.py", "experiment=emoji", f"run_dir={run_dir}", *encoders, *settings, "compile=false",
                    f"data.batch_size={options.batch}", f"trainer.max_steps={skip + options.steps}",
                    f"trainer.log_every_n_steps={WINDOW}", "callbacks.grid=null", "callbacks.checkpoints=null",
                    "trainer.val_every_n_steps=null",
                )  # fmt: skip
                found[name] += windows(run_dir, skip)
                shutil.rmtree(run_dir)
    for name, rows in found.items():
        images, mfu, wait = (statistics.median(row[column] for row in rows) for column in COLUMNS)
        spread = [f(row[COLUMNS[0]] for row in rows) for f in (min, max)]
        print(
            f"{name:7} {images:6.1f} images/s ({spread[0]:.1f} to {spread[1]:.1f}), MFU {mfu:.1%}, "
            f"waiting for data {wait:.1%}"
        )


if __name__ == "__main__":
    main()
