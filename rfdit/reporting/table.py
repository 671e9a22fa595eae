"""The runs as rows: for the page, and as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rfdit.reporting.metrics import Column
from rfdit.reporting.runs import Run

Value = str | float | int | None


@dataclass(frozen=True)
class Head:
    """A column's title, its unit or what it means, and how many digits its numbers have."""

    title: str
    meaning: str = ""
    form: str = ""


NAMES = (Head("run"), Head("state"))
NUMBERS = (
    Head("parameters", "of backbone and conditioner", ",d"),
    Head("GMACs", "10^9 multiply-adds of a forward pass on an image", ".4g"),
    Head("img/s", "median of what was logged while training", ".4g"),
    Head("steps", "optimiser steps done", ",d"),
    Head("compute", "GMACs of training: 3 x forward x images", ".4g"),
    Head("train loss", "mean of the last tenth of the logged steps", ".4f"),
    Head("val loss", "the last", ".4f"),
)


# Settings of how a run is watched and fed, which stand behind what came of it.
ASIDE = ("callbacks.", "logger.", "data.num_workers")


def heads(swept: Sequence[str], columns: Sequence[Column]) -> list[Head]:
    """Those of every report, one for each setting in which runs differ, and one for each metric and protocol."""
    before, after = _around(swept)
    metrics = (Head(column.title, "the last; protocol below", ".4g") for column in columns)
    return [*NAMES, *map(_setting, before), *NUMBERS, *metrics, *map(_setting, after)]


def _setting(name: str) -> Head:
    return Head(name, "as it was set; nothing where it was not")


def _around(swept: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings that stand before the numbers, and those behind them."""
    aside = [name for name in swept if name.startswith(ASIDE)]
    return [name for name in swept if name not in aside], aside


def row(run: Run, swept: Sequence[str], columns: Sequence[Column]) -> list[Value]:
    """A run's values, in the order of `heads`; None where it has none."""
    before, after = _around(swept)
    last = [series[-1][1] if (series := column.series(run)) else None for column in columns]
    return [
        run.name,
        run.state.name,
        *map(run.settings.get, before),
        run.cost.parameters if run.cost else None,
        run.cost.gmacs if run.cost else None,
        run.images_per_second,
        run.steps,
        run.compute(run.steps),
        run.train_loss,
        run.val_loss,
        *last,
        *map(run.settings.get, after),
    ]


def as_csv(titles: Sequence[Head], rows: Sequence[Sequence[Value]]) -> str:
    """Numbers in full; nothing where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([head.title for head in titles])
    writer.writerows([["" if value is None else value for value in values] for values in rows])
    return buffer.getvalue()
