"""Run folders. Only YAML, JSON and CSV are read, so that a run of unknown origin cannot execute code."""

import json
import math
import re
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfdit.eval.records import EvaluationRecord, read_evaluations
from rfdit.reporting.cost import read_cost
from rfdit.run.folder import read_metrics, read_overrides
from rfdit.run.state import FAILED, FINISHED, RunState, read_state
from rfdit.storage.untrusted import read_yaml, reading

RUN_FILES = ("config.yaml", FAILED, FINISHED)  # any of them makes a folder a run folder
PLACES = ("run_dir=", "ckpt=last")  # overrides that say where a run is, not what it is
Series = list[tuple[int, float]]  # (steps done, value)


@dataclass(frozen=True)
class Run:
    """A run, as its folder describes it.

    name: the folder, relative to that of the report. overrides: without those that name places.
    git: commit and state of the code at the last start, empty if unknown.
    parameters, gmacs: size and cost of the network; None if unknown.
    batch: images in an optimiser step, over all devices. curves: logged values, by name.
    sheets: PNG files of samples, by step.
    """

    name: str
    state: RunState
    overrides: list[str]
    config: dict[str, Any]
    git: dict[str, Any]
    parameters: int | None
    gmacs: float | None
    batch: int
    curves: dict[str, Series]
    evaluations: list[EvaluationRecord]
    sheets: dict[int, Path]

    @property
    def steps(self) -> int:
        """Steps done, as far as they were logged."""
        if self.state.step is not None:
            return self.state.step
        return max((series[-1][0] for series in self.curves.values()), default=0)

    @property
    def max_steps(self) -> int | None:
        return (self.config.get("trainer") or {}).get("max_steps")

    @property
    def images_per_second(self) -> float | None:
        """The median of the logged speed, which a pause does not change."""
        speeds = [value for _, value in self.curves.get("speed/images_per_second", [])]
        return statistics.median(speeds) if speeds else None

    def compute(self, steps: int) -> float | None:
        """Multiply-adds of training up to a step: three forward passes' worth for each image."""
        return None if self.gmacs is None else 3e9 * self.gmacs * self.batch * steps

    @property
    def command(self) -> str:
        """The command that makes the run again, in a folder of its own."""
        return shlex.join(["python", "train.py", *self.overrides])

    @property
    def settings(self) -> dict[str, str]:
        """The overrides by their keys."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {key: value for key, _, value in pairs}


def read_runs(root: Path) -> tuple[list[Run], list[str]]:
    """The runs below a folder in natural order, and a sentence for each one that cannot be read.

    Hidden folders are left out. Raises ValueError if there is no run that can be read.
    """
    if not root.is_dir():
        raise ValueError(f"runs={root} is not a folder; give the folder of a sweep, or of one run")
    files = (file for name in RUN_FILES for file in root.rglob(name))
    folders = {f.parent for f in files if not any(p.startswith(".") for p in f.relative_to(root).parts)}
    if not folders:
        raise ValueError(f"runs={root} holds no run: no folder below it has a config.yaml of train.py")
    runs, unread = [], []
    for folder in sorted(folders, key=_natural):
        try:
            runs.append(read_run(folder, root))
        except (ValueError, OSError) as error:
            unread.append(str(error))
    if not runs:
        raise ValueError(f"runs={root} holds no run that can be read: {unread[0]}")
    return runs, unread


def read_run(folder: Path, root: Path) -> Run:
    """The run in a folder. Raises ValueError, in one sentence, or OSError if it cannot be read."""
    state = read_state(folder)
    assert state is not None
    file = folder / "config.yaml"
    config = (read_yaml(file) or {}) if file.exists() else {}
    with reading(f"{file} cannot be read"):
        batch = _batch(config)
        parameters, gmacs = read_cost(config) if config else (None, None)
    if not config and state.name != "failed":  # a run that fails early has no configuration yet
        raise ValueError(f"{folder} has no config.yaml")
    return Run(
        name=str(folder.relative_to(root)) if folder != root else folder.resolve().name,
        state=state,
        overrides=_read_overrides(folder),
        config=config,
        git=_read_git(folder / "environment.jsonl"),
        parameters=parameters,
        gmacs=gmacs,
        batch=batch,
        curves=_read_curves(folder / "metrics.csv", state.step),
        evaluations=read_evaluations(folder),
        sheets={
            int(f.stem.removeprefix("step_")): f
            for f in sorted(folder.glob("samples/step_*.png"))
            if re.fullmatch(r"step_\d{1,15}", f.stem)
        },
    )


def _lines(file: Path) -> list[str]:
    """The lines of a text; [] without the file."""
    with reading(f"{file} cannot be read"):
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def _read_overrides(folder: Path) -> list[str]:
    """The overrides without those that name places."""
    with reading(f"{folder / 'overrides.txt'} cannot be read"):
        return [override for override in read_overrides(folder) if not override.startswith(PLACES)]


def _batch(config: Mapping[str, Any]) -> int:
    trainer, data = config.get("trainer") or {}, config.get("data") or {}
    counts = (trainer.get(name, 1) for name in ("devices", "num_nodes", "accumulate_grad_batches"))
    return math.prod((*map(int, counts), int(data.get("batch_size", 1))))


def _read_git(file: Path) -> dict[str, Any]:
    """The commit of the last start that was recorded whole: a kill may have cut the last line."""
    for line in reversed(_lines(file)):
        try:
            return dict(json.loads(line)["git"] or {})
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return {}


def _read_curves(file: Path, end: int | None) -> dict[str, Series]:
    """Finite values by name, at the number of steps done, which is one more than the logged step.

    end: the run's last step, if it is known; the validation after it may be logged at the next one.
    """
    curves: dict[str, Series] = {}
    with reading(f"{file} cannot be read"):
        for row in read_metrics(file):
            step = int(row.pop("step")) + 1
            values = {name: float(value) for name, value in row.items() if value != ""}
            for name, value in values.items():
                if math.isfinite(value):
                    curves.setdefault(name, []).append((step if end is None else min(step, end), value))
    return curves


def _natural(folder: Path) -> list[tuple[int, str]]:
    """A key that sorts p2 before p10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", str(folder))]
