"""metrics.csv: every logged number, written as it is logged."""

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rfdit.durable import flush


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv as text, empty where nothing was logged; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class MetricsCSV(Logger):
    """Writes `metrics.csv` with one row per step and one column per metric.

    Lightning's own CSV logger deletes the file of the run that it resumes. This one keeps it and
    drops the rows of steps that are done again.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = ["step"]
        self._rows: dict[int, dict[str, float]] = {}  # what is not in the file, and the newest step's
        self._changed: set[int] = set()  # steps of which the file lacks something
        self._newest = -1  # step of the file's last row
        self._opened = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self._rows.setdefault(step or 0, {})
        new = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        # By what is written of them, since NaN is equal to nothing.
        if any(str(row.get(name)) != str(value) for name, value in new.items()):
            row.update(new)
            self._changed.add(step or 0)

    @rank_zero_only
    def save(self) -> None:
        """Writes what was logged: of that a process that is killed loses nothing."""
        if not self._changed:
            return
        new = sorted({name for row in self._rows.values() for name in row} - set(self._columns))
        if new or not self._opened or min(self._changed) <= self._newest:  # a validation after its step
            self._rewrite(new)
        else:
            with self.path.open("a", newline="") as file:
                self._write_rows(file)
        self._newest = max(self._rows)
        self._rows = {self._newest: self._rows[self._newest]}
        self._changed.clear()

    @rank_zero_only
    def sync(self) -> None:
        """Writes what was logged and makes it outlast a loss of power."""
        self.save()
        if self.path.exists():
            flush(self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _write_rows(self, file: TextIO) -> None:
        writer = csv.DictWriter(file, self._columns)
        writer.writerows({"step": step, **self._rows[step]} for step in sorted(self._changed))

    def _rewrite(self, new_columns: list[str]) -> None:
        """Replaces the file by one with other columns or other rows than can be appended."""
        rows: dict[int, dict[str, Any]] = {int(row["step"]): dict(row) for row in read_metrics(self.path)}
        if not self._opened:  # what a run has done that is gone on with from an earlier step
            rows = {step: row for step, row in rows.items() if step < min(self._changed)}
            self._columns = list(dict.fromkeys(["step", *(name for row in rows.values() for name in row)]))
            new_columns = [name for name in new_columns if name not in self._columns]
        self._columns += new_columns
        for step in self._changed:
            rows[step] = {**rows.get(step, {}), "step": step, **self._rows[step]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows[step] for step in sorted(rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
        flush(self.path.parent)
        self._opened = True
