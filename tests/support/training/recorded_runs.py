"""Runs in processes of their own that record the samples of each step."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import torch

from tests.support.commands.processes import ROOT, environment
from tests.support.waiting import wait_until

STEPS = 24
SMALL = [
    "model.width=24", "model.num_heads=2", "model.depth=1", "trainer.log_every_n_steps=1", "callbacks.grid=null",
    "trainer.val_every_n_steps=null", "callbacks.checkpoints.every_n_steps=5", "text_encoder.width=8",
    "data.resolution=8", "data.filters.min_size=8", f"trainer.max_steps={STEPS}", "trainer.precision=fp32",
    "trainer.accelerator=cpu",  # two ranks run anywhere
    "+callbacks.recorder._target_=tests.support.training.recorder.Recorder",
]  # fmt: skip


def command(run: str, shards: Path, *overrides: str, ranks: int, data: str = "laion") -> list[str]:
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    ddp = ["strategy=ddp", f"trainer.devices={ranks}"] if ranks > 1 else []
    return [
        sys.executable, *torchrun, str(ROOT / "train.py"), f"run_dir={run}", f"data={data}", f"data.shards={shards}",
        f"+callbacks.recorder.folder={run}/record", *SMALL, *ddp, *overrides,
    ]  # fmt: skip


def run(run_dir: str, shards: Path, cwd: Path, *overrides: str, ranks: int, data: str = "laion") -> None:
    done = subprocess.run(
        command(run_dir, shards, *overrides, ranks=ranks, data=data), cwd=cwd, env=environment(cwd / "cache"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def recorded(folder: Path) -> dict[int, list[tuple[int, str]]]:
    """Step -> (position, key) of all ranks; of steps that were done again, the last time."""
    steps: dict[int, dict[str, list[tuple[int, str]]]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            pairs = list(zip(line["positions"], line["keys"], strict=True))
            steps.setdefault(line["step"], {})[file.name] = pairs
    return {step: sorted(itertools.chain(*ranks.values())) for step, ranks in steps.items()}


def flat(steps: dict[int, list[tuple[int, str]]]) -> list[tuple[int, str]]:
    return [pair for step in sorted(steps) for pair in steps[step]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == STEPS
    return saved["state_dict"] | {f"ema.{k}": v for k, v in saved["ema"]["ema"]["network"].items()}


def wait_for_step(record: Path, step: int, process: "subprocess.Popen[str]") -> None:
    wait_until(lambda: max(recorded(record), default=0) >= step, process)
