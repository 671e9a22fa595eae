"""The runs as a table: one column per setting, number and metric."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import EngFormatter

from rfdit.reporting.metrics import Metric
from rfdit.reporting.runs import Run
from rfdit.reporting.settings import swept_settings, value_of

# Settings of logging and data loading, which come after a run's numbers.
SECONDARY = ("callbacks.", "logger.", "data.num_workers")


@dataclass(frozen=True)
class Column:
    """A column of the table.

    value: the entry of a run, None where it has none. unit, meaning: of the entries.
    shown: a number as the page shows it; None for a column of text.
    better: 1 where the highest number is the best, -1 where the lowest is, 0 where none is.
    """

    title: str
    value: Callable[[Run], Any]
    unit: str = ""
    meaning: str = ""
    shown: Callable[[Any], str] | None = None
    better: int = 0

    def plain(self, run: Run) -> str:
        """The entry in full, for sorting and CSV."""
        value = self.value(run)
        return "" if value is None else str(value)

    def formatted(self, run: Run) -> str:
        """The entry as the page shows it."""
        value = self.value(run)
        if value is None or value == "":
            return "\N{EN DASH}"
        return str(value) if self.shown is None else self.shown(value)

    def best(self, runs: Sequence[Run]) -> str | None:
        """The best entry in full; None for a column without one, or with fewer than two entries."""
        values = [value for run in runs if (value := self.value(run)) is not None]
        if self.better == 0 or len(values) < 2:
            return None
        return str(max(values, key=lambda value: self.better * value))


def make_columns(runs: Sequence[Run], metrics: Sequence[Metric]) -> list[Column]:
    """Columns of every report, of each setting in which runs differ, and of each metric."""
    settings = swept_settings(runs)
    return [
        Column("run", lambda run: run.name),
        Column("state", lambda run: run.state.name),
        *(_setting(name, runs) for name in settings if not name.startswith(SECONDARY)),
        Column("parameters", lambda run: run.parameters, "number", "of backbone and conditioner", prefixed),
        Column("forward pass", lambda run: run.gmacs, "GMACs/image", "10^9 multiply-adds", "{:.4g}".format),
        Column("speed", lambda run: run.images_per_second, "images/s", "median in training", "{:.4g}".format),
        Column("steps", lambda run: run.steps, "updates", "of the weights", "{:,d}".format),
        Column("compute", lambda run: run.compute(run.steps), "MACs", "3 x forward x images", prefixed),
        *map(_metric, metrics),
        *(_setting(name, runs) for name in settings if name.startswith(SECONDARY)),
    ]


def varying(columns: Sequence[Column], runs: Sequence[Run]) -> tuple[list[Column], list[Column]]:
    """The columns for the page: those in which runs differ, and those with one entry for all runs.

    Columns without an entry are in neither; of a single run all others are in the first.
    """
    filled = [column for column in columns if any(column.plain(run) for run in runs)]
    alike = [c for c in filled if len(runs) > 1 and len({c.plain(run) for run in runs}) == 1]
    return [column for column in filled if column not in alike], alike


def write_csv(columns: Sequence[Column], runs: Sequence[Run]) -> str:
    """The table as CSV, with numbers in full and empty fields where a run has none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([column.title for column in columns])
    writer.writerows([column.plain(run) for column in columns] for run in runs)
    return buffer.getvalue()


def _setting(name: str, runs: Sequence[Run]) -> Column:
    """Sorted by number if all of its values are numbers."""
    values = [value for run in runs if (value := value_of(run, name)) is not None]
    if all(type(value) in (int, float) for value in values):
        return Column(name, lambda run: value_of(run, name), "setting", shown="{:.6g}".format)

    def text(run: Run) -> str | None:
        value = value_of(run, name)
        return value if isinstance(value, str | None) else json.dumps(value)

    return Column(name, text, "setting")


def _metric(metric: Metric) -> Column:
    meaning = "mean of the last tenth" if metric.name == "train/loss" else "last value"
    if metric.footnote:
        meaning += "; its protocol is below"
    unit, better = metric.kind.unit, metric.kind.better
    return Column(metric.title, metric.last, unit, meaning, "{:.4g}".format, better)


def prefixed(value: float) -> str:
    """Four digits and an SI prefix: 32.96M."""
    return EngFormatter(sep="")(float(f"{value:.4g}"))
