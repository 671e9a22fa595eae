"""A run that is killed at ten moments, checkpoint writes included, is the run that was never killed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rfdit.checkpoint.resume import changed_settings
from rfdit.checkpoint.saved_run import read_raw
from rfdit.run.folder import read_metrics
from tests.support.commands.processes import ROOT, SETTINGS, environment
from tests.support.training.spread import run
from tests.support.training.states import assert_equal

pytestmark = pytest.mark.usefixtures("drawn_shapes")


# What each kill hits: a first start and the first write of all, resumes and their first writes among them.
TEN = [
    "writing:1", "starting", "between:5", "writing:1", "starting",
    "writing:4", "between:6", "starting", "writing:1", "writing:5",
]  # fmt: skip
FOUR = ["writing:1", "between:5", "starting", "writing:8"]
THREE = ["writing:1", "writing:2", "starting"]
STARTS = ["writing:1", "between:3", "starting"]
# Runs that start from weights; dropout draws from a generator whose state must survive.
STARTED = {
    "weights": ["freeze=[conditioner.*]"],
    "adapters": ["adapter=lora", "adapter.r=2", "adapter.dropout=0.2"],
}


def drill(folder: Path, *overrides: str, steps: int, aims: list[str]) -> None:
    """Trains `killed`, as tests/support/training/drill.py does, and `whole`, which writes one checkpoint."""
    settings = [*SETTINGS, *overrides, f"trainer.max_steps={steps}"]
    whole = [*settings, f"callbacks.checkpoints.every_n_steps={steps}"]
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.support.training.drill", ",".join(aims), "7",
            f"run_dir={folder / 'killed'}", *settings, "--", f"run_dir={folder / 'whole'}", *whole,
        ],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # Not by lines: a child may have been killed before the end of its own.
    lines = re.findall(r"(?<!and )killed (?:starting|writing|between)|ended with -?\d+", done.stdout)
    hit = [f"killed {aim.partition(':')[0]}" for aim in aims]
    assert lines == [*hit, "ended with 0", "ended with 0"], done.stdout + done.stderr[-3000:]


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
@pytest.mark.parametrize("kind", STARTED)
def test_kills_of_a_run_from_weights_change_nothing(tmp_path: Path, kind: str) -> None:
    base = run(tmp_path / "base", "data.batch_size=2", "trainer.max_steps=3", "schedule.warmup_steps=0")
    start = ["init=weights", f"init.ckpt={base}", "init.weights=raw", *STARTED[kind]]
    drill(tmp_path, "data.batch_size=2", *start, steps=12, aims=STARTS)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_kills_of_sharded_checkpoints_change_nothing(tmp_path: Path) -> None:
    settings = ["data.batch_size=1", "strategy=fsdp", "trainer.devices=2"]
    drill(tmp_path, *settings, steps=16, aims=THREE)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    left = list((tmp_path / "killed/checkpoints").iterdir())
    assert len(left) == 2  # the state and its name: what the kills left is gone
