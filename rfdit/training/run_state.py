"""How a run ended: marks in its folder, each written whole or not at all."""

import json
import os
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FINISHED, FAILED = "finished.json", "failed.json"


@dataclass(frozen=True)
class RunState:
    """What a folder says of its run.

    name: finished, failed or unfinished; an unfinished one was stopped, killed, or runs now.
    step: where a finished run ended. metrics: the last value of each, by name. error: why a run failed.
    """

    name: str
    step: int | None = None
    metrics: dict[str, float] | None = None
    error: str | None = None


def mark_finished(folder: Path, *, step: int, metrics: dict[str, float]) -> None:
    """The last thing that a run writes."""
    _write(folder / FINISHED, {"step": step, "metrics": metrics})


def mark_failed(folder: Path, sentence: str, error: Exception) -> None:
    """Keeps the first error where several ranks fail: the others only find themselves alone."""
    if not (folder / FAILED).exists():
        trace = "".join(traceback.format_exception(error))
        _write(folder / FAILED, {"error": sentence, "type": type(error).__name__, "traceback": trace})


def forget_end(folder: Path) -> None:
    """Removes the marks of a run that goes on."""
    for name in (FINISHED, FAILED):
        (folder / name).unlink(missing_ok=True)


def read_state(folder: Path) -> RunState | None:
    """None for a folder without a run; raises ValueError for marks that cannot be read.

    A failed start leaves an earlier finish as it is, and is what counts.
    """
    if (folder / FAILED).exists():
        return RunState("failed", error=str(_read(folder / FAILED)["error"]))
    if (finished := finished_run(folder)) is not None:
        return finished
    return RunState("unfinished") if (folder / "config.yaml").exists() else None


def finished_run(folder: Path) -> RunState | None:
    """What the run's last mark says; None for one that has not come to its end."""
    if not (folder / FINISHED).exists():
        return None
    mark = _read(folder / FINISHED)
    return RunState("finished", step=int(mark["step"]), metrics=mark["metrics"])


def _read(file: Path) -> dict[str, Any]:
    try:
        mark = json.loads(file.read_text())
        missing = ({"error"} if file.name == FAILED else {"step", "metrics"}) - mark.keys()
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if missing:
        raise ValueError(f"{file} lacks {', '.join(sorted(missing))}")
    return dict(mark)


def _write(file: Path, mark: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    time = datetime.now(UTC).isoformat(timespec="seconds")
    partial.write_text(json.dumps(mark | {"time": time}, indent=1) + "\n")
    partial.replace(file)
