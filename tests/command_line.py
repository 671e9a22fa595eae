"""Runs the scripts inside the test process, as a user would from a shell."""

import sys
from pathlib import Path

import pytest

import rfdit.convert
import rfdit.export
import rfdit.posthoc
import rfdit.sample
import rfdit.train

# A network that trains in moments, without worker processes, pictures or TensorBoard.
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


class CommandLine:
    """`train(...)`, `sample(...)` and so on with overrides; `error(...)` gives the sentence of a failure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def train(self, *overrides: str) -> None:
        self._patch.setattr(sys, "argv", ["train.py", *FAST, *overrides])
        rfdit.train.main()

    def sample(self, *overrides: str) -> str:
        """What was printed."""
        self._patch.setattr(sys, "argv", ["sample.py", "accelerator=cpu", "sampler.steps=2", *overrides])
        rfdit.sample.main()
        return self._capsys.readouterr().out

    def posthoc(self, *overrides: str) -> str:
        """What was printed."""
        self._patch.setattr(sys, "argv", ["posthoc", *overrides])
        rfdit.posthoc.main()
        return self._capsys.readouterr().out

    def export(self, *overrides: str) -> str:
        """What was printed."""
        self._patch.setattr(sys, "argv", ["export", *overrides])
        rfdit.export.main()
        return self._capsys.readouterr().out

    def convert(self, *overrides: str) -> str:
        """What was printed."""
        self._patch.setattr(sys, "argv", ["convert", *overrides])
        rfdit.convert.main()
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
    import csv

    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
