"""Numbers of evaluations in columns: one for each metric under each protocol."""

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rfdit.eval.protocol import EvalProtocol, group_by_protocol
from rfdit.reporting.runs import Run, Series

LOSSES = ("val/loss", "train/loss")


@dataclass(frozen=True)
class Protocol:
    """How some evaluations were made.

    letter: its footnote. evaluation: what they were called. metrics: the names of their numbers.
    other: the letter of the first protocol that shares one of these names. differences: from that.
    """

    letter: str
    evaluation: str
    settings: EvalProtocol
    metrics: frozenset[str]
    other: str | None
    differences: list[str]

    @property
    def text(self) -> str:
        """All of it, in one line."""
        settings = flatten(self.settings.as_dict())
        return f"[{self.settings.hash}] " + "; ".join(f"{name}={value}" for name, value in settings.items())


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
        wanted = self.protocol.settings.hash
        found = {
            e.step: e.values[self.metric]
            for e in run.evaluations
            if self.metric in e.values and e.protocol.hash == wanted
        }
        return sorted(found.items())


def find_protocols(runs: Sequence[Run]) -> list[Protocol]:
    """Every protocol in the runs' evaluations, with a letter; that of most numbers is first."""
    records = [
        {"name": e.name, "values": e.values, "protocol": e.protocol.as_dict()}
        for run in runs
        for e in run.evaluations
    ]
    found: list[Protocol] = []
    for group in group_by_protocol(records):
        names = ", ".join(dict.fromkeys(record["name"] for record in group.records))
        metrics = frozenset(metric for record in group.records for metric in record["values"])
        other = next((one for one in found if one.metrics & metrics), None)
        differences = [] if other is None else group.protocol.differences(other.settings)
        letter = None if other is None else other.letter
        found.append(Protocol(_letter(len(found)), names, group.protocol, metrics, letter, differences))
    return found


def find_columns(protocols: Sequence[Protocol]) -> list[Column]:
    """Each metric under each of its protocols."""
    columns = [Column(metric, protocol) for protocol in protocols for metric in protocol.metrics]
    return sorted(columns, key=lambda column: column.metric)


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


def _letter(number: int) -> str:
    """a, b, ..., z, a1, b1, ..."""
    turn, place = divmod(number, 26)
    return string.ascii_lowercase[place] + (str(turn) if turn else "")
