"""Run folders: written by hand, so that their contents are known, or trained once and copied."""

import functools
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import rfdit.commands.train
from rfdit.run.state import mark_finished
from tests.support.commands.command_line import CommandLine, fast
from tests.support.commands.composing import composed
from tests.support.evaluation.small_evaluation import PROTOCOL

SMALL = ["model.width=24", "model.num_heads=2", "trainer.accelerator=cpu", "data.batch_size=8"]
MakeRun = Callable[..., Path]
Trained = Callable[..., Path]


@pytest.fixture(scope="session")
def configs() -> Callable[..., dict[str, Any]]:
    """Composed configurations; each is composed once."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}

    def config(*overrides: str) -> dict[str, Any]:
        if overrides not in found:
            found[overrides] = composed("train", *SMALL, *overrides)
        return found[overrides]

    return config


@pytest.fixture
def make_run(tmp_path: Path, configs: Callable[..., dict[str, Any]]) -> MakeRun:
    """Makes `runs/NAME` with a loss for each of ten steps, and the other files requested."""

    def make(
        name: str,
        *overrides: str,
        losses: Sequence[float] = tuple(1 / step for step in range(1, 11)),
        evaluations: Sequence[Mapping[str, Any]] = (),
        grid: int | None = 10,
        finished: bool = True,
    ) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "samples").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(configs(*overrides)))
        typed = [*SMALL, *overrides, f"run_dir={tmp_path}"]
        (folder / "overrides.txt").write_text("".join(f"{o}\n" for o in typed))
        (folder / "environment.jsonl").write_text(
            json.dumps({"git": {"commit": "a" * 40, "modified": False}}) + "\n"
        )
        rows = [f"{step},{loss},{'' if step % 5 else loss / 2},100\n" for step, loss in enumerate(losses)]
        (folder / "metrics.csv").write_text(
            "step,train/loss,val/loss,speed/images_per_second\n" + "".join(rows)
        )
        lines = [json.dumps({"name": "quick", "seconds": 1.0, "time": ""} | dict(e)) for e in evaluations]
        (folder / "evaluations.jsonl").write_text("".join(f"{line}\n" for line in lines))
        if grid is not None:
            Image.new("RGB", (900, 900), "#803040").save(folder / f"samples/step_{grid:08d}.png")
        if finished:
            mark_finished(folder, step=len(losses), metrics={})
        return folder

    return make


@pytest.fixture(scope="session")
def train_once(tmp_path_factory: pytest.TempPathFactory, shapes_cache: Path) -> Callable[..., Path]:
    """Trains with overrides, in a folder of the session's; a second call gives the same run."""

    @functools.cache
    def train(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("XDG_CACHE_HOME", str(shapes_cache))
            patch.setattr(sys, "argv", ["train.py", *fast("run_dir=run", *overrides)])
            rfdit.commands.train.main()
        return folder / "run"

    return train


@pytest.fixture
def trained(cli: CommandLine, train_once: Trained) -> Trained:
    """Makes `run` in the working directory what `cli.train("run_dir=run", ...)` makes it."""

    def copy(*overrides: str) -> Path:
        return Path(shutil.copytree(train_once(*overrides), "run", symlinks=True))

    return copy


def evaluation(step: int, fid: float, **changed: Any) -> dict[str, Any]:
    """A record of evaluations.jsonl with a FID. changed: fields of its protocol."""
    protocol = replace(PROTOCOL, **changed).as_dict()
    return {"step": step, "weights": "ema", "values": {"fid": fid}, "protocol": protocol}
