"""metrics.csv: every logged number, appended to as the run goes on."""

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


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
        self._pending: dict[int, dict[str, float]] = {}
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
        row = self._pending.setdefault(step or 0, {})
        row.update({name: float(value) for name, value in metrics.items() if name != "epoch"})

    @rank_zero_only
    def save(self) -> None:
        # The newest step may get more columns yet, from a validation after it.
        self._write({step: row for step, row in self._pending.items() if step < max(self._pending)})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write(dict(self._pending))

    def _write(self, rows: dict[int, dict[str, float]]) -> None:
        if not rows:
            return
        if not self._opened:
            self._open(first_step=min(rows))
        new = sorted({name for row in rows.values() for name in row} - set(self._columns))
        if new:
            self._columns += new
            self._rewrite(read_metrics(self.path))
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writerows({"step": step, **row} for step, row in sorted(rows.items()))
        self._pending = {step: row for step, row in self._pending.items() if step not in rows}

    def _open(self, first_step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_metrics(self.path) if int(row["step"]) < first_step]
        self._columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
        self._rewrite(rows)
        self._opened = True

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self.path)
