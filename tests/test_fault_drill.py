"""A run that is killed at ten moments, checkpoint writes included, is the run that was never killed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdit.training.checkpoint import changed_settings, read_raw
from rfdit.training.metrics_csv import read_metrics
from tests.test_kill import ROOT, environment
from tests.test_train import assert_equal

pytestmark = pytest.mark.usefixtures("drawn_shapes")
SETTINGS = [
    "model.width=24", "model.num_heads=2", "model.depth=1", "trainer.log_every_n_steps=1", "callbacks.grid=null",
    "trainer.val_every_n_steps=null", "callbacks.checkpoints.every_n_steps=1", "text_encoder.width=16",
    "trainer.precision=fp32", "callbacks.throughput=null", "logger.tensorboard=null", "trainer.accelerator=cpu",
    "data.num_workers=0",
]  # fmt: skip


# What each kill hits: a first start and the first write of all, resumes and their first writes among them.
TEN = [
    "writing:1", "starting", "between:5", "writing:1", "starting",
    "writing:4", "between:6", "starting", "writing:1", "writing:5",
]  # fmt: skip
FOUR = ["writing:1", "between:5", "starting", "writing:8"]
THREE = ["writing:1", "writing:2", "starting"]


def drill(folder: Path, *overrides: str, steps: int, aims: list[str]) -> None:
    """Trains `killed`, as tests/drill.py does, and `whole`, which writes one checkpoint."""
    settings = [*SETTINGS, *overrides, f"trainer.max_steps={steps}"]
    whole = [*settings, f"callbacks.checkpoints.every_n_steps={steps}"]
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.drill", ",".join(aims), "7",
            f"run_dir={folder / 'killed'}", *settings, "--", f"run_dir={folder / 'whole'}", *whole,
        ],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("killed", "ended"))]
    hit = [f"killed {aim.partition(':')[0]}" for aim in aims]
    assert lines == [*hit, "ended with 0", "ended with 0"], done.stdout + done.stderr[-3000:]


def tensors(node: Any, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(node, torch.Tensor):
        return {path: node}
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return {k: v for key, child in children for k, v in tensors(child, f"{path}/{key}").items()}


def state(run: Path) -> dict[str, torch.Tensor]:
    """Weights, EMA and optimiser."""
    saved = read_raw(run / "checkpoints/last.ckpt")
    return {
        name: tensor
        for part in ("state_dict", "ema", "optimizer_states")
        for name, tensor in tensors(saved[part], part).items()
    }


def assert_same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def assert_same_run(mine: Path, theirs: Path) -> None:
    """All that the last checkpoints hold, but for what the two were set to, and all rows of metrics.csv."""
    saved, other = (read_raw(run / "checkpoints/last.ckpt") for run in (mine, theirs))
    settings = changed_settings(*(state.pop("rfdit")["config"] for state in (other, saved)))
    assert [setting.partition("=")[0] for setting in settings] == ["callbacks.checkpoints.every_n_steps"]
    assert saved["ema"]["ema"]["updates"] == saved["global_step"]
    assert_equal(saved, other)
    rows, expected = (
        [{name: value for name, value in row.items() if value} for row in read_metrics(run / "metrics.csv")]
        for run in (mine, theirs)
    )
    assert [int(row["step"]) for row in rows] == list(range(saved["global_step"]))
    assert rows == expected


@pytest.mark.slow
@pytest.mark.parametrize(("background", "aims"), [("false", TEN), ("true", FOUR)])
def test_kills_change_nothing(tmp_path: Path, background: str, aims: list[str]) -> None:
    settings = ["data.batch_size=2", f"trainer.background_checkpoints={background}"]
    drill(tmp_path, *settings, steps=50, aims=aims)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_kills_of_sharded_checkpoints_change_nothing(tmp_path: Path) -> None:
    settings = ["data.batch_size=1", "strategy=fsdp", "trainer.devices=2"]
    drill(tmp_path, *settings, steps=16, aims=THREE)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    left = list((tmp_path / "killed/checkpoints").iterdir())
    assert len(left) == 2  # the state and its name: what the kills left is gone
