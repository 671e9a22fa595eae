"""Numbers of evaluations in columns: one for each metric under each protocol."""

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rfdit.reporting.runs import Run, Series

LOSSES = ("val/loss", "train/loss")


@dataclass(frozen=True)
class Protocol:
    """How evaluations were made. letter: its footnote. differences: from the first protocol of the same evaluation."""

    letter: str
    evaluation: str
    settings: dict[str, str]
    differences: list[str]

    @property
    def text(self) -> str:
        """All of it, in one line."""
        return "; ".join(f"{name}={value}" for name, value in self.settings.items())


@dataclass(frozen=True)
class Column:
    """A metric under a protocol; `protocol` is None for losses, which every run logs alike."""

    metric: str
    protocol: Protocol | None = None

    @property
    def title(self) -> str:
        return self.metric if self.protocol is None else f"{self.metric} ({self.protocol.letter})"

    def series(self, run: Run) -> Series:
        """(step, value), in the order of the steps; of evaluations of the same step, the last."""
        if self.protocol is None:
            return run.curves.get(self.metric, [])
        found = {
            e.step: e.values[self.metric]
            for e in run.evaluations
            if self.metric in e.values and (e.name, flatten(e.protocol)) == self._identity
        }
        return sorted(found.items())

    @property
    def _identity(self) -> tuple[str, dict[str, str]]:
        assert self.protocol is not None
        return self.protocol.evaluation, self.protocol.settings


def find_protocols(runs: Sequence[Run]) -> list[Protocol]:
    """Every protocol in the runs' evaluations, with a letter."""
    found: list[Protocol] = []
    for evaluation in (e for run in runs for e in run.evaluations):
        settings = flatten(evaluation.protocol)
        same = [p for p in found if p.evaluation == evaluation.name]
        if any(p.settings == settings for p in same):
            continue
        differences = _differences(settings, same[0].settings) if same else []
        found.append(Protocol(_letter(len(found)), evaluation.name, settings, differences))
    return found


def find_columns(runs: Sequence[Run], protocols: Sequence[Protocol]) -> list[Column]:
    """The metrics that the runs have, each under each of its protocols."""
    columns: dict[tuple[str, str], Column] = {}
    for protocol in protocols:
        for run in runs:
            for evaluation in run.evaluations:
                if (evaluation.name, flatten(evaluation.protocol)) == (
                    protocol.evaluation,
                    protocol.settings,
                ):
                    for metric in evaluation.values:
                        columns.setdefault((metric, protocol.letter), Column(metric, protocol))
    return sorted(columns.values(), key=lambda column: column.metric)


def pick_column(wanted: str | None, runs: Sequence[Run], columns: Sequence[Column]) -> Column | None:
    """What is plotted against compute: the metric asked for, else FID, any other metric, or a loss.

    Of several protocols that of the most runs. Raises ValueError, listing what there is, for an unknown metric.
    """

    def count(column: Column) -> int:
        return sum(bool(column.series(run)) for run in runs)

    losses = [column for column in map(Column, LOSSES) if count(column)]
    every = [*columns, *losses]
    if wanted is not None:
        every = [column for column in every if wanted in (column.metric, column.title)]
        if not every:
            names = ", ".join(dict.fromkeys(c.metric for c in [*columns, *losses])) or "none"
            raise ValueError(f"metric={wanted} is not in these runs; there is {names}")
    elif fids := [column for column in columns if "fid" in column.metric.lower()]:
        every = fids
    elif columns:
        every = list(columns)
    else:
        every = losses[:1]
    return max(every, key=count, default=None)


def flatten(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings with dotted names, in order; values as JSON has them."""

    def walk(node: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, Mapping) and node:
            for name, child in sorted(node.items()):
                yield from walk(child, f"{path}.{name}" if path else str(name))
        else:
            yield path, node if isinstance(node, str) else json.dumps(node)

    return dict(walk(protocol, ""))


def _differences(mine: dict[str, str], theirs: dict[str, str]) -> list[str]:
    names = sorted(mine.keys() | theirs.keys())
    return [
        f"{name}={mine.get(name, 'not set')} (there {theirs.get(name, 'not set')})"
        for name in names
        if mine.get(name) != theirs.get(name)
    ]


def _letter(number: int) -> str:
    """a, b, ..., z, a1, b1, ..."""
    turn, place = divmod(number, 26)
    return string.ascii_lowercase[place] + (str(turn) if turn else "")
