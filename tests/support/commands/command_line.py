"""Runs the scripts inside the test process, as a user would from a shell."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rfdit.commands.convert
import rfdit.commands.export
import rfdit.commands.index
import rfdit.commands.posthoc
import rfdit.commands.reference
import rfdit.commands.sample
import rfdit.commands.train

# A network that trains in moments, without worker processes, images or TensorBoard.
FAST = [
    "model.width=24",
    "model.depth=2",
    "model.num_heads=2",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.max_steps=3",
    "trainer.accelerator=cpu",
    "trainer.val_every_n_steps=null",
    "trainer.log_every_n_steps=1",
    "callbacks.throughput=null",
    "callbacks.grid=null",
    "logger.tensorboard=null",
]
# Trains for long enough that the average of the weights is apart from them.
TWENTY_STEPS = ["trainer.max_steps=20", "schedule.warmup_steps=0", "optimizer.lr=1e-2"]
# As many of the default data as tests need.
FEW_SHAPES = "data.shards.samples=512"


def fast(*overrides: str) -> list[str]:
    """These overrides of train.py after those that make it fast."""
    others = any(override.startswith(("data=", "experiment=")) for override in overrides)
    return [*FAST, *([] if others else [FEW_SHAPES]), *overrides]


class CommandLine:
    """`train(...)`, `sample(...)` and so on with overrides; `error(...)` gives the sentence of a failure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def train(self, *overrides: str) -> None:
        self._patch.setattr(sys, "argv", ["train.py", *fast(*overrides)])
        rfdit.commands.train.main()

    def sample(self, *overrides: str) -> str:
        return self._printed(rfdit.commands.sample.main, "accelerator=cpu", "sampler.steps=2", *overrides)

    def posthoc(self, *overrides: str) -> str:
        return self._printed(rfdit.commands.posthoc.main, *overrides)

    def export(self, *overrides: str) -> str:
        return self._printed(rfdit.commands.export.main, *overrides)

    def convert(self, *overrides: str) -> str:
        return self._printed(rfdit.commands.convert.main, *overrides)

    def index(self, *overrides: str) -> str:
        return self._printed(rfdit.commands.index.main, *overrides)

    def reference(self, *overrides: str) -> str:
        return self._printed(rfdit.commands.reference.main, "accelerator=cpu", *overrides)

    def _printed(self, main: Callable[[], object], *overrides: str) -> str:
        """Call `main` with the overrides; returns the printed output."""
        self._patch.setattr(sys, "argv", [main.__module__, *overrides])
        main()
        return self._capsys.readouterr().out

    def error(self, script: str, *overrides: str) -> str:
        """The one line that a failing call ends with."""
        with pytest.raises(SystemExit) as stopped:
            getattr(self, script)(*overrides)
        message = str(stopped.value.code)
        assert message.startswith("error: ")
        assert "\n" not in message
        return message.removeprefix("error: ")


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def images(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))])
