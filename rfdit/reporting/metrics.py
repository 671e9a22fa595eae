"""Metrics of evaluations, kept apart by protocol, since only numbers of the same protocol compare."""

import json
import math
import statistics
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rfdit.differences import flatten
from rfdit.eval.protocol import EvalProtocol, group_by_protocol
from rfdit.reporting.runs import Run, Series

LOSSES = ("val/loss", "train/loss")
AVERAGED = 0.1  # fraction of a run's last steps over which its training loss is averaged


class Kind(NamedTuple):
    """What is known of a metric. label: its name in plots. better: 1 if higher is better, -1 if lower is, else 0."""

    label: str
    unit: str = ""
    better: int = 0


KINDS = {
    "val/loss": Kind("validation loss", "MSE", -1),
    "train/loss": Kind("training loss", "MSE", -1),
    "fid": Kind("FID", "distance", -1),
    "sfid": Kind("sFID", "distance", -1),
    "kid": Kind("KID", "distance", -1),
    "cmmd": Kind("CMMD", "distance", -1),
    "clip_score": Kind("CLIP score", "cosine x 100", 1),
    "inception_score": Kind("inception score", "classes", 1),
    "density": Kind("density", "ratio", 1),
    **{name: Kind(name, "share", 1) for name in ("precision", "recall", "coverage")},
    # Of `PromptAccuracy`.
    **{name: Kind(name, "share", 1) for name in ("colour", "shape", "relation", "size", "scene")},
}


@dataclass(frozen=True)
class Footnote:
    """A protocol and the letter by which columns and plots refer to it.

    evaluations: their names. metrics: the names of their numbers.
    other: the letter of the first protocol that shares one of these metrics. differences: from that protocol.
    """

    letter: str
    evaluations: str
    protocol: EvalProtocol
    metrics: frozenset[str]
    other: str | None
    differences: list[str]

    @property
    def text(self) -> str:
        """The whole protocol in one line."""
        settings = (
            f"{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in sorted(flatten(self.protocol.as_dict()).items())
        )
        return f"[{self.protocol.hash}] {'; '.join(settings)}"


@dataclass(frozen=True)
class Metric:
    """A metric under one protocol. footnote: None for losses, which every run logs alike."""

    name: str
    footnote: Footnote | None = None

    @property
    def title(self) -> str:
        return self.name if self.footnote is None else f"{self.name} ({self.footnote.letter})"

    @property
    def kind(self) -> Kind:
        """The metric of this name; one that is not known is neither better higher nor lower."""
        return KINDS.get(self.name, Kind(self.name))

    def series(self, run: Run) -> Series:
        """(step, value) in the order of the steps; the last one where a step was evaluated twice."""
        if self.footnote is None:
            return run.curves.get(self.name, [])
        protocol = self.footnote.protocol.hash
        values = {
            record.step: record.values[self.name]
            for record in run.evaluations
            if self.name in record.values and record.protocol.hash == protocol
        }
        return sorted(values.items())

    def last(self, run: Run) -> float | None:
        """The value of the last step; of the training loss the mean of the last tenth, since one step's is noisy."""
        values = [value for _, value in self.series(run)]
        count = math.ceil(AVERAGED * len(values)) if self.name == "train/loss" else 1
        return statistics.mean(values[-count:]) if values else None


def find_footnotes(runs: Sequence[Run]) -> list[Footnote]:
    """The protocols of the runs' evaluations, the most frequent first."""
    footnotes: list[Footnote] = []
    records = [record.as_dict() for run in runs for record in run.evaluations]
    for number, group in enumerate(group_by_protocol(records)):
        names = ", ".join(dict.fromkeys(record["name"] for record in group.records))
        metrics = frozenset(metric for record in group.records for metric in record["values"])
        other = next((note for note in footnotes if note.metrics & metrics), None)
        footnotes.append(
            Footnote(
                letter=f"{string.ascii_lowercase[number % 26]}{number // 26 or ''}",
                evaluations=names,
                protocol=group.protocol,
                metrics=metrics,
                other=other.letter if other else None,
                differences=group.protocol.differences(other.protocol) if other else [],
            )
        )
    return footnotes


def find_metrics(footnotes: Sequence[Footnote]) -> list[Metric]:
    """Each metric under each of its protocols, by name."""
    metrics = [Metric(name, footnote) for footnote in footnotes for name in footnote.metrics]
    return sorted(metrics, key=lambda metric: metric.name)


def best_run(runs: Sequence[Run], metric: Metric | None) -> Run | None:
    """The run with the best last value; None without two values, or if neither higher nor lower is better."""
    if metric is None or metric.kind.better == 0:
        return None
    values = [(metric.kind.better * value, run) for run in runs if (value := metric.last(run)) is not None]
    return max(values, key=lambda pair: pair[0])[1] if len(values) > 1 else None


def pick_metric(name: str | None, runs: Sequence[Run], metrics: Sequence[Metric]) -> Metric | None:
    """The metric to plot: the named one; by default FID, else any other, else a loss.

    If a metric has several protocols, the one with the most runs is taken.
    Raises ValueError for an unknown name, with the known ones.
    """

    def count(metric: Metric) -> int:
        return sum(bool(metric.series(run)) for run in runs)

    losses = [metric for metric in map(Metric, LOSSES) if count(metric)]
    if name is None:
        fids = [metric for metric in metrics if "fid" in metric.name.lower()]
        return max(fids or metrics or losses[:1], key=count, default=None)
    found = [metric for metric in [*metrics, *losses] if name in (metric.name, metric.title)]
    if not found:
        known = ", ".join(dict.fromkeys(metric.name for metric in [*metrics, *losses])) or "none"
        raise ValueError(f"metric={name} is not in these runs; there is {known}")
    return max(found, key=count)
