"""The logger of metrics.csv, which writes every number as it is logged."""

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rfdit.run.folder import read_metrics
from rfdit.run.row_sums import add_sums, replace_sums, sums_of, sync_sums
from rfdit.storage.atomic import flush, naming, write_bytes


class MetricsCSV(Logger):
    """Writes `metrics.csv` with one row per step and one column per metric.

    Lightning's own CSV logger deletes the file of the run that it resumes. This one keeps it and
    drops the rows of steps that are done again.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = ["step"]
        self._rows: dict[int, dict[str, float]] = {}  # those not in the file, and the newest step's
        self._changed: set[int] = set()  # steps whose rows are not complete in the file
        self._newest = -1  # step of the file's last row
        self._sum = 0  # checksum of the file's last line
        self._opened = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run folder holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self._rows.setdefault(step or 0, {})
        new = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        # Compared as text, since NaN is not equal to itself.
        if any(str(row.get(name)) != str(value) for name, value in new.items()):
            row.update(new)
            self._changed.add(step or 0)

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged, so that a process that is killed loses none of it."""
        if not self._changed:
            return
        new = sorted({name for row in self._rows.values() for name in row} - set(self._columns))
        if new or not self._opened or min(self._changed) <= self._newest:  # a validation after its step
            self._rewrite(new)
        else:
            rows = self._encoded(sorted(self._changed))
            sums = sums_of(rows, before=self._sum)
            add_sums(self.path, sums)
            with naming(self.path), self.path.open("ab") as file:
                file.write(b"".join(rows))
            self._sum = sums[-1]
        self._newest = max(self._rows)
        self._rows = {self._newest: self._rows[self._newest]}
        self._changed.clear()

    @rank_zero_only
    def sync(self) -> None:
        """Write what was logged so that it outlasts a loss of power."""
        self.save()
        if self.path.exists():
            sync_sums(self.path)
            flush(self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _encoded(self, steps: Iterable[int]) -> list[bytes]:
        """The lines of these steps' rows."""
        return [self._line({"step": step, **self._rows[step]}) for step in steps]

    def _line(self, row: Mapping[str, Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerow(row)
        return text.getvalue().encode()

    def _rewrite(self, new_columns: list[str]) -> None:
        """Replace the file with one that has other columns, or rows that cannot be appended."""
        rows: dict[int, dict[str, Any]] = {int(row["step"]): dict(row) for row in read_metrics(self.path)}
        if not self._opened:  # the run is resumed, perhaps from an earlier step than it had reached
            rows = {step: row for step, row in rows.items() if step < min(self._changed)}
            self._columns = list(dict.fromkeys(["step", *(name for row in rows.values() for name in row)]))
            new_columns = [name for name in new_columns if name not in self._columns]
        self._columns += new_columns
        for step in self._changed:
            rows[step] = {**rows.get(step, {}), "step": step, **self._rows[step]}
        header = self._line(dict(zip(self._columns, self._columns)))
        lines = [header, *(self._line(rows[step]) for step in sorted(rows))]
        sums = sums_of(lines)
        add_sums(self.path, sums)
        sync_sums(self.path)
        write_bytes(self.path, b"".join(lines), durable=True)
        replace_sums(self.path, sums)
        self._sum = sums[-1]
        self._opened = True
