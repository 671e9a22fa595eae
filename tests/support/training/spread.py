"""Runs of the real command line on one device and on two, and equality of what they have trained."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch

import rfdit.commands.train
from tests.support.commands.command_line import metrics
from tests.support.commands.forks import train_on_ranks
from tests.support.commands.processes import SETTINGS, environment

# One batch of four, on one device or on two.
TWO = ["trainer.devices=2", "data.batch_size=2"]
FOUR = "data.batch_size=4"
STEPS = ["trainer.max_steps=20", "callbacks.checkpoints.every_n_steps=10"]


def run(run_dir: Path, *overrides: str, settings: Sequence[str] = SETTINGS) -> Path:
    """Trains in this process, or on several ranks in others."""
    train([f"run_dir={run_dir}", *settings, *STEPS, *overrides])
    return run_dir


def train(arguments: list[str]) -> None:
    """`train.py` with these arguments, in this process or on several ranks in others."""
    with patch.object(sys, "argv", ["train.py", *arguments]), patch.dict(os.environ, environment()):
        if any(argument.startswith("trainer.devices=") for argument in arguments):
            train_on_ranks(*arguments)
        else:
            rfdit.commands.train.main()


def curve(run_dir: Path) -> list[float]:
    return [float(row["train/loss"]) for row in metrics(run_dir)]


def assert_close(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal but for the order in which float32 numbers are added."""
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=2e-6, msg=name)
