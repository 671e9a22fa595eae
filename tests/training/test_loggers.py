"""What loggers are given, and that a resumed run goes on in theirs."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rfdit.config.run_name import run_name
from rfdit.training import loggers
from rfdit.training.loggers import identity, mlflow_logger, show_config, show_image, wandb_logger
from tests.support.commands.command_line import CommandLine
from tests.support.commands.composing import composed

GRID = "callbacks.grid={_target_: rfdit.callbacks.SampleGrid, folder: run/samples, sampler: ${sampler}, count: 1}"


class Calls:
    """A stand-in for a package's client, which keeps what it is asked."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.made.append((name, args, kwargs))


class Fake(Logger):
    """A stand-in for a logger whose package is not installed."""

    run_id, name, version = "r1", "fake", 0

    def __init__(self, **settings: Any) -> None:
        self.settings, self.experiment, self.given = settings, Calls(), Calls()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.given.log_hyperparams(params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        self.given.log_image(*args, **kwargs)


class FakeWandb(Fake): ...


class FakeMLFlow(Fake): ...


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "WandbLogger", FakeWandb)
    monkeypatch.setattr(loggers, "MLFlowLogger", FakeMLFlow)


def test_wandb_goes_on_in_its_run(tmp_path: Path, fakes: None) -> None:
    first, again = (wandb_logger(folder=str(tmp_path), project="p", name="n") for _ in range(2))
    assert first.settings["id"] == again.settings["id"] == identity(tmp_path, "wandb")  # type: ignore[attr-defined]
    assert again.settings["resume"] == "allow"  # type: ignore[attr-defined]
    show_config(first, {"seed": 1}, folder=tmp_path, step=0)
    assert first.given.made == [("log_hyperparams", ({"seed": 1},), {})]  # type: ignore[attr-defined]


def test_mlflow_goes_on_in_its_run(tmp_path: Path, fakes: None) -> None:
    first: Any = mlflow_logger(folder=str(tmp_path), experiment="e", name="n", tracking_uri="sqlite:///x.db")
    assert (first.settings["run_id"], first.settings["tracking_uri"]) == (None, "sqlite:///x.db")
    show_config(first, {"seed": 1}, folder=tmp_path, step=0)
    again: Any = mlflow_logger(folder=str(tmp_path), experiment="e", name="n")
    assert again.settings["run_id"] == "r1"
    show_config(again, {"seed": 2}, folder=tmp_path, step=5)
    show_image(again, "samples", Image.new("RGB", (2, 2)), 5)
    assert [name for name, *_ in first.given.made + again.given.made] == ["log_hyperparams"]  # once
    name, args, _ = again.experiment.made[0]
    assert (name, args[-1]) == ("log_text", "config_00000005.yaml")
    assert again.experiment.made[1][0] == "log_image"


def test_tensorboard_has_configuration_losses_and_grids_of_both_starts(cli: CommandLine) -> None:
    given = ["run_dir=run", GRID, "sampler.steps=1"]
    board = (
        "logger.tensorboard={_target_: lightning.pytorch.loggers.TensorBoardLogger, save_dir: run, name: tb, "
    )
    cli.train(*given, f"{board}version: '', default_hp_metric: false}}")
    cli.train(*given, f"{board}version: '', default_hp_metric: false}}", "ckpt=last", "trainer.max_steps=5")
    events = EventAccumulator("run/tb").Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3, 4]
    assert [event.step for event in events.Images("samples")] == [3, 5]
    assert [event.step for event in events.Tensors("config/text_summary")] == [0, 3]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "max_steps: 3" in text
    assert "hp_metric" not in events.Tags()["scalars"]


def test_several_loggers_at_once() -> None:
    config = composed("train", "logger=[tensorboard,wandb,mlflow]", "run_dir=outputs/mine")["logger"]
    assert config.keys() == {"csv", "tensorboard", "wandb", "mlflow"}
    assert config["wandb"]["name"] == "mine"


@pytest.mark.parametrize(
    ("run_dir", "name"),
    [
        ("outputs/mine", "mine"),
        ("/data/runs/mine", "runs/mine"),
        ("outputs/sizes/patch=p4,size=s", "sizes/patch=p4,size=s"),
        ("outputs/2026-11-30/01-02-03", "default (2026-11-30 01-02-03)"),
    ],
)
def test_names_of_runs(run_dir: str, name: str) -> None:
    assert run_name(run_dir) == name
