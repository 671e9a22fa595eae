"""A run that is killed at ten moments, checkpoint writes included, is the run that was never killed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdit.training.checkpoint import read_raw
from tests.test_kill import ROOT, environment

pytestmark = pytest.mark.usefixtures("drawn_shapes")
SETTINGS = [
    "model.width=24", "model.num_heads=2", "model.depth=1", "trainer.log_every_n_steps=1", "callbacks.grid=null",
    "trainer.val_every_n_steps=null", "callbacks.checkpoints.every_n_steps=1", "text_encoder.width=16",
    "trainer.precision=fp32", "callbacks.throughput=null", "logger.tensorboard=null", "trainer.accelerator=cpu",
    "data.num_workers=0",
]  # fmt: skip


def drill(folder: Path, *overrides: str, steps: int, kills: int) -> list[str]:
    """Trains `killed` and `whole`, which writes one checkpoint; the lines that tests/drill.py prints of the former."""
    settings = [*SETTINGS, *overrides, f"trainer.max_steps={steps}"]
    whole = [*settings, f"callbacks.checkpoints.every_n_steps={steps}"]
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.drill", str(kills), "7",
            f"run_dir={folder / 'killed'}", *settings, "--", f"run_dir={folder / 'whole'}", *whole,
        ],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("killed", "ended"))]
    assert lines[-2:] == ["ended with 0"] * 2, done.stderr[-3000:]
    return lines[:-2]


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


@pytest.mark.slow
@pytest.mark.parametrize(("background", "kills"), [("false", 10), ("true", 4)])
def test_kills_change_nothing(tmp_path: Path, background: str, kills: int) -> None:
    settings = ["data.batch_size=2", f"trainer.background_checkpoints={background}"]
    killed = drill(tmp_path, *settings, steps=50, kills=kills)
    assert len(killed) == kills
    assert "killed while writing" in killed
    assert_same(state(tmp_path / "killed"), state(tmp_path / "whole"))


@pytest.mark.slow
def test_kills_of_sharded_checkpoints_change_nothing(tmp_path: Path) -> None:
    settings = ["data.batch_size=1", "strategy=fsdp", "trainer.devices=2"]
    killed = drill(tmp_path, *settings, steps=16, kills=3)
    assert "killed while writing" in killed
    assert_same(state(tmp_path / "killed"), state(tmp_path / "whole"))
    left = list((tmp_path / "killed/checkpoints").iterdir())
    assert len(left) == 2  # the state and its name: what the kills left is gone
