"""The end of a run, as files in its folder record it: finished.json or failed.json."""

import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rfdit.storage.checked import read_checked_json, write_checked_json

FINISHED, FAILED = "finished.json", "failed.json"


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    name: finished, failed or unfinished; an unfinished run was stopped, was killed, or is going on.
    step: the last step of a finished run. metrics: the last value of each, by name. error: why a run failed.
    """

    name: str
    step: int | None = None
    metrics: dict[str, float] | None = None
    error: str | None = None


@dataclass(frozen=True)
class TrainedRun:
    """A run that has been trained from Python.

    step: its last step; None for a run that was ended before its last one. metrics: the last value of each.
    """

    folder: Path
    step: int | None
    metrics: dict[str, float]

    @classmethod
    def of(cls, folder: Path) -> "TrainedRun":
        """The run in a folder."""
        done = finished_run(folder)
        return cls(folder, done.step if done else None, (done.metrics if done else None) or {})


def mark_finished(folder: Path, *, step: int, metrics: dict[str, float]) -> None:
    """Record that a run has finished; the last thing that it writes."""
    _write(folder / FINISHED, {"step": step, "metrics": metrics})


def mark_failed(folder: Path, sentence: str, error: Exception) -> None:
    """Record why a run failed: the first error if several ranks fail, since the others only follow it."""
    if not (folder / FAILED).exists():
        trace = "".join(traceback.format_exception(error))
        _write(folder / FAILED, {"error": sentence, "type": type(error).__name__, "traceback": trace})


def forget_end(folder: Path) -> None:
    """Remove the record of the end of a run that goes on."""
    for name in (FINISHED, FAILED):
        (folder / name).unlink(missing_ok=True)


def read_state(folder: Path) -> RunState | None:
    """The state of the run in a folder; None without a run.

    A failure takes precedence over an earlier finish, which stays recorded.
    Raises ValueError for a record that cannot be read.
    """
    if (folder / FAILED).exists():
        return RunState("failed", error=str(_read(folder / FAILED)["error"]))
    if (finished := finished_run(folder)) is not None:
        return finished
    return RunState("unfinished") if (folder / "config.yaml").exists() else None


def finished_run(folder: Path) -> RunState | None:
    """The state of a run that has finished; None for any other."""
    if not (folder / FINISHED).exists():
        return None
    record = _read(folder / FINISHED)
    return RunState("finished", step=record["step"], metrics=record["metrics"])


def _read(file: Path) -> dict[str, Any]:
    try:
        record = read_checked_json(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if missing := ({"error"} if file.name == FAILED else {"step", "metrics"}) - record.keys():
        raise ValueError(f"{file} lacks {', '.join(sorted(missing))}")
    metrics = record.get("metrics", {})
    numbers = isinstance(metrics, dict) and all(isinstance(x, int | float) for x in metrics.values())
    if not numbers or type(record.get("step", 0)) is not int:
        raise ValueError(f"{file} is not the record of a run's end: its step or metrics are not numbers")
    return record


def _write(file: Path, record: dict[str, Any]) -> None:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    write_checked_json(file, record | {"time": time})
