"""A time budget becomes a number of steps."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rfdit.callbacks import budget
from rfdit.callbacks.budget import within_bounds
from rfdit.training.trainer import seconds_of
from tests.support.commands.command_line import CommandLine


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a step takes a second, and a measurement seven."""
    clock = SimpleNamespace(perf_counter=iter(range(1000)).__next__)
    monkeypatch.setattr(budget, "time", clock)
    monkeypatch.setattr(budget, "SECONDS", 3.0)


@pytest.mark.parametrize(
    ("duration", "seconds"), [("00:04:00", 240), ("12:00:00", 43_200), ("01:02:03:04", 93_784)]
)
def test_durations(duration: str, seconds: int) -> None:
    assert seconds_of(duration) == seconds


@pytest.mark.slow
def test_a_run_and_its_resumption_are_functions_of_the_steps(cli: CommandLine, steady: None) -> None:
    """The number is recorded in place of the budget, and a resumed run takes it from there."""
    given = ["schedule.warmup_steps=0", "trainer.budget=00:00:15"]
    cli.train("run_dir=run", *given)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["trainer"]["max_steps"] == config["schedule"]["total_steps"] == 6  # 0.9 * 15 - 7
    assert config["trainer"]["budget"] is None
    message = cli.error("train", "run_dir=run", "ckpt=last", *given)
    assert message.startswith("ckpt=run/checkpoints/last.ckpt is already at step 6;")
    # The measurement leaves no trace in the run.
    cli.train("run_dir=again", "schedule.warmup_steps=0", "trainer.max_steps=6")
    assert Path("again/metrics.csv").read_text() == Path("run/metrics.csv").read_text()


@pytest.mark.parametrize(
    ("least", "most", "limit", "steps", "said"),
    [
        (None, None, None, 20, "trainer.budget=00:01:00"),
        (30, 40, None, 30, "trainer.budget_min_steps=30, more than fit into 00:01:00"),
        (10, 15, None, 15, "trainer.budget_max_steps, which fit into 00:01:00"),
        (90, None, "00:01:30", 33, "trainer.budget_min_steps=90, more than fit into 00:01:00"),
        (90, None, "00:00:30", 20, "trainer.budget_min_steps=90, more than fit into 00:01:00"),
    ],
)
def test_the_steps_of_a_budget_have_bounds(
    least: int | None, most: int | None, limit: str | None, steps: int, said: str
) -> None:
    """Of 60 s, 54 are for steps of 2 s each, and the measurement took 14 of these."""
    settings = {
        "budget": "00:01:00", "budget_min_steps": least, "budget_max_steps": most, "max_time": limit
    }  # fmt: skip
    assert within_bounds(settings, step=2, measured=14) == (steps, said)


def test_a_budget_shorter_than_a_step(cli: CommandLine, steady: None) -> None:
    message = cli.error("train", "trainer.budget=00:00:08")
    assert message == "trainer.budget=00:00:08 is too short: a step takes 1 s on this machine"


def test_several_devices_are_refused(cli: CommandLine) -> None:
    message = cli.error("train", "trainer.budget=00:00:01", "trainer.devices=2", "strategy=ddp")
    assert message == (
        "trainer.budget=00:00:01 is measured on one device; give trainer.max_steps for several"
    )
