"""What a run folder says of its run; only YAML, JSON and CSV are read, and nothing that can hold code."""

import csv
import json
import math
import re
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rfdit.eval.protocol import EvalProtocol
from rfdit.eval.records import read_records
from rfdit.reporting.cost import Cost, cost_of
from rfdit.training.metrics_csv import read_metrics
from rfdit.training.run_state import FAILED, FINISHED, RunState, read_state

RUN_FILES = ("config.yaml", FAILED, FINISHED)  # any of them makes a folder a run's
PRINTED = 0.1  # the share of a run's last steps over which its training loss is averaged
PERSONAL = ("run_dir=", "ckpt=last")  # overrides that say where a run is, not what it is
Series = list[tuple[int, float]]  # (steps done, value)


@dataclass(frozen=True)
class Evaluation:
    """One line of evaluations.jsonl."""

    name: str
    step: int
    values: dict[str, float]
    protocol: EvalProtocol


@dataclass(frozen=True)
class Run:
    """One run.

    name: the folder, relative to that of the report. batch: images in an optimiser step, over all devices.
    curves: what was logged, by name. grids: sheets of samples, by step. cost: None where it is not known.
    """

    name: str
    folder: Path
    state: RunState
    overrides: list[str]
    config: dict[str, Any]
    environment: dict[str, Any]
    cost: Cost | None
    batch: int
    curves: dict[str, Series]
    evaluations: list[Evaluation]
    grids: dict[int, Path]

    @property
    def steps(self) -> int:
        """Steps done, as far as was logged."""
        if self.state.step is not None:
            return self.state.step
        return max((series[-1][0] for series in self.curves.values()), default=0)

    @property
    def images_per_second(self) -> float | None:
        """The median of what was logged: a pause does not change it."""
        series = self.curves.get("speed/images_per_second")
        return statistics.median(value for _, value in series) if series else None

    @property
    def train_loss(self) -> float | None:
        """The mean over the last tenth of the logged steps; one step's loss depends on its times."""
        series = self.curves.get("train/loss")
        return statistics.mean(v for _, v in series[-math.ceil(PRINTED * len(series)) :]) if series else None

    @property
    def val_loss(self) -> float | None:
        series = self.curves.get("val/loss")
        return series[-1][1] if series else None

    def compute(self, steps: int) -> float | None:
        """GMACs of training up to a step: three forward passes' worth for each image."""
        return None if self.cost is None else 3 * self.cost.gmacs * self.batch * steps

    @property
    def command(self) -> str:
        """What makes the run again, in a folder of its own."""
        kept = [override for override in self.overrides if not override.startswith(PERSONAL)]
        return shlex.join(["python", "train.py", *kept])

    @property
    def settings(self) -> dict[str, str]:
        """The overrides by their keys."""
        pairs = (o.partition("=") for o in self.overrides if not o.startswith(PERSONAL))
        return {key: value for key, _, value in pairs}


def find_runs(root: Path) -> list[Path]:
    """The run folders under a folder, itself included, in natural order; hidden folders are left out.

    Raises ValueError if there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise ValueError(f"runs={root} is no folder; give the folder of a sweep, or of one run")
    files = (file for name in RUN_FILES for file in root.rglob(name))
    folders = {f.parent for f in files if not any(p.startswith(".") for p in f.relative_to(root).parts)}
    if not folders:
        raise ValueError(f"runs={root} holds no run: nowhere below it is a config.yaml that train.py writes")
    return sorted(folders, key=lambda folder: _natural(str(folder)))


def read_run(folder: Path, root: Path) -> Run:
    """Raises ValueError or OSError, in one sentence, for a folder that cannot be read."""
    state = read_state(folder)
    assert state is not None
    config = _read_config(folder / "config.yaml")
    if not config and state.name != "failed":  # what fails early has no configuration yet
        raise ValueError(f"{folder} has no config.yaml")
    lines = _read_jsonl(folder / "environment.jsonl")
    overrides = folder / "overrides.txt"
    return Run(
        name=str(folder.relative_to(root)) if folder != root else folder.resolve().name,
        folder=folder,
        state=state,
        overrides=overrides.read_text().splitlines() if overrides.exists() else [],
        config=config,
        environment=lines[-1] if lines else {},
        cost=cost_of(config) if config else None,
        batch=_batch(config),
        curves=_read_curves(folder / "metrics.csv", state.step),
        evaluations=[_evaluation(record, folder) for record in read_records(folder)],
        grids={int(f.stem.removeprefix("step_")): f for f in sorted(folder.glob("samples/step_[0-9]*.png"))},
    )


def swept_settings(runs: list[Run]) -> list[str]:
    """The names of the settings in which runs differ."""
    names = sorted({name for run in runs for name in run.settings})
    known = [run for run in runs if run.overrides]  # a run that failed early says nothing
    return [name for name in names if len({run.settings.get(name) for run in known}) > 1]


def _read_config(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        config = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no configuration of train.py's")
    return config


def _batch(config: Mapping[str, Any]) -> int:
    trainer, data = config.get("trainer") or {}, config.get("data") or {}
    counts = (trainer.get(name, 1) for name in ("devices", "num_nodes", "accumulate_grad_batches"))
    try:
        return math.prod((*map(int, counts), int(data.get("batch_size", 1))))
    except (TypeError, ValueError):
        raise ValueError("config.yaml does not say how many images a step has") from None


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    """A kill may have cut the last line, which is left out; raises ValueError for any other damage."""
    lines = file.read_text().splitlines() if file.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            if number < len(lines):
                raise ValueError(f"{file} is damaged in line {number}") from None
    return found


def _evaluation(record: dict[str, Any], folder: Path) -> Evaluation:
    """Numbers that are none (NaN) are left out."""
    try:
        numbers = {k: float(v) for k, v in record["values"].items() if math.isfinite(v)}
        protocol = EvalProtocol.from_dict(record["protocol"])
        return Evaluation(str(record["name"]), int(record["step"]), numbers, protocol)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder}/evaluations.jsonl has a line that is no evaluation: {error}") from None


def _read_curves(file: Path, end: int | None) -> dict[str, Series]:
    """Finite values by name; a step's number there is that before it was done.

    end: the run's last step, if it is known; the validation after it may be logged as of the next one.
    """
    curves: dict[str, Series] = {}
    try:
        rows = read_metrics(file)
        for number, row in enumerate(rows, 1):
            try:
                if None in row.values():
                    raise ValueError("a line is too short")
                step = int(row.pop("step")) + 1
                step = step if end is None else min(step, end)
                values = {name: float(value) for name, value in row.items() if value}
            except (ValueError, TypeError):
                if number < len(rows):
                    raise
                continue  # a kill may have cut the last line
            for name, value in values.items():
                if math.isfinite(value):
                    curves.setdefault(name, []).append((step, value))
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{file} is damaged: {error!r}") from None
    return curves


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts p2 before p10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]
