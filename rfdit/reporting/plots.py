"""The report's figures: readable without colour, with units, as PNG for papers and SVG for the page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from rfdit.reporting.metrics import Column
from rfdit.reporting.power_law import PowerLaw, fit_power_law
from rfdit.reporting.runs import Run, Series

# Okabe and Ito's colours without yellow, which is too light on white; https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
IN_LEGEND = 28  # runs that look different; more are drawn, and not listed
DECADE = 4.0  # the ratio of largest to smallest from which an axis is logarithmic
FEW_DECADES = 1000.0  # the ratio up to which 2, 3 and 5 times a power of ten are labelled too
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
NAMES = {
    "val/loss": "validation loss", "train/loss": "training loss",
    "fid": "FID", "sfid": "sFID", "kid": "KID", "cmmd": "CMMD", "clip_score": "CLIP score",
}  # fmt: skip
POINTS = 200  # of a drawn curve at most: a page of many long runs must stay small
STYLE: Any = {"font.size": 10, "axes.grid": True, "grid.color": "#dddddd", "svg.hashsalt": "rfdit"}


@dataclass(frozen=True)
class Plot:
    """A figure. title: what it shows; notes: sentences below it."""

    name: str
    title: str
    figure: Figure
    notes: list[str]

    def bytes(self, form: str) -> bytes:
        """The figure as `png` or `svg`."""
        buffer = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {}
        with mpl.rc_context(STYLE):
            self.figure.savefig(buffer, format=form, dpi=150, bbox_inches="tight", metadata=metadata)
        return buffer.getvalue()


def loss_plot(runs: Sequence[Run]) -> Plot | None:
    """Training loss against steps; None where nothing was logged."""
    curves = [(run, run.curves["train/loss"]) for run in runs if run.curves.get("train/loss")]
    if not curves:
        return None
    figure, axes = _figure("training steps", "training loss")
    for run, series in curves:
        thin = _averaged(series)
        _draw(axes, runs, run, [step for step, _ in thin], [value for _, value in thin], line=True, marks=6)
    _finish(axes, [value for _, series in curves for _, value in series], "y")
    each = max(len(series) for _, series in curves) > POINTS
    notes = [f"Each curve has at most {POINTS} points, means of neighbouring logged steps."] if each else []
    return Plot("loss", "Training loss", figure, notes)


def steps_plot(runs: Sequence[Run], column: Column) -> Plot | None:
    """A metric of evaluations over training: a line for each run with more than one; None if there is none."""
    curves = [(run, series) for run in runs if len(series := column.series(run)) > 1]
    if column.protocol is None or not curves:
        return None
    figure, axes = _figure("training steps", _label(column))
    for run, series in curves:
        steps, values = zip(*series)
        _draw(axes, runs, run, steps, values, line=True, marks=12)
    _finish(axes, [value for _, series in curves for _, value in series], "y")
    return Plot("steps", f"{_title(column)} over training", figure, _protocol_note(column))


def compute_plot(runs: Sequence[Run], column: Column) -> Plot | None:
    """A metric against training compute: a line for each run, and a power law through the finished ones' ends."""
    curves = []
    for run in runs:
        pairs = [(run.compute(step), value) for step, value in column.series(run)]
        if points := [(x, value) for x, value in pairs if x]:
            curves.append((run, points))
    if not curves:
        return None
    figure, axes = _figure("training compute (GMACs: 3 x forward x images)", _label(column))
    for run, points in curves:
        _draw(axes, runs, run, [x for x, _ in points], [y for _, y in points], line=True)
    counted = _finished([run for run, _ in curves])
    ends = [points[-1] for run, points in curves if run in counted]
    note = _draw_fit(axes, ends, "C", "the finished runs' ends")
    _finish(axes, [x for _, points in curves for x, _ in points], "x")
    _finish(axes, [y for _, points in curves for _, y in points], "y")
    return Plot(
        "compute", f"{_title(column)} against training compute", figure, [*note, *_protocol_note(column)]
    )


def gmacs_plot(runs: Sequence[Run], column: Column) -> Plot | None:
    """A metric against the cost of a forward pass, at the last step that all finished runs have it for.

    One that was stopped early would put them all to its step. Where none is finished all are shown.
    """
    having = [run for run in runs if run.cost and column.series(run)]
    counted = _finished(having)
    found = [(run, run.cost.gmacs, column.series(run)) for run in counted if run.cost]
    if not found:
        return None
    common = set.intersection(*({step for step, _ in series} for _, _, series in found))
    at = max(common, default=None)
    points = [(run, x, dict(series)[at] if at is not None else series[-1][1]) for run, x, series in found]
    figure, axes = _figure("forward pass (GMACs for an image)", _label(column))
    for run, x, y in points:
        _draw(axes, runs, run, [x], [y], line=False)
    note = _draw_fit(axes, [(x, y) for _, x, y in points], "G", "the points")
    if len(counted) < len(having):
        note.append(f"{len(having) - len(counted)} runs that are not finished are left out.")
    _finish(axes, [x for _, x, _ in points], "x")
    _finish(axes, [y for _, _, y in points], "y")
    when = f"at step {at:,}" if at is not None else "at each run's last step, since they have none in common"
    return Plot(
        "gmacs",
        f"{_title(column)} against the network's cost, {when}",
        figure,
        [*note, *_protocol_note(column)],
    )


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0))
        axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(_verbatim(y))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw(
    axes: Axes,
    runs: Sequence[Run],
    run: Run,
    x: Sequence[float],
    y: Sequence[float],
    *,
    line: bool,
    marks: int = 1,
) -> None:
    """A run looks alike in all figures: its place in the list decides colour, line and marker.

    marks: about how many points have a marker; the last has one always.
    """
    place = runs.index(run)
    turn = place // len(COLOURS)
    every = max(1, len(x) // marks)
    axes.plot(
        x, y,
        color=COLOURS[place % len(COLOURS)],
        linestyle=LINES[turn % len(LINES)] if line else "none",
        marker=MARKERS[(place + turn) % len(MARKERS)],
        markevery=sorted({*range(every - 1, len(x), every), len(x) - 1}),
        linewidth=1.4, markersize=6,
        label=_verbatim(run.name) if place < IN_LEGEND else None,
    )  # fmt: skip


def _finished(runs: Sequence[Run]) -> Sequence[Run]:
    """Those that have come to their end; all where none has."""
    return [run for run in runs if run.state.name == "finished"] or runs


def _draw_fit(axes: Axes, points: Sequence[tuple[float, float]], symbol: str, through: str) -> list[str]:
    """Draws the power law and says what it is, or why there is none."""
    law = fit_power_law([x for x, _ in points], [y for _, y in points])
    if law is None:
        return [
            f"No power law: it takes three points of positive values, of different cost ({len(points)} here)."
        ]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    xs = [low * (high / low) ** (i / 60) for i in range(61)]
    axes.plot(
        xs, [law(x) for x in xs], color="#444444", linewidth=1.3, linestyle=(0, (1, 1.5)), label="power law"
    )
    return [describe(law, symbol, through)]


def describe(law: PowerLaw, symbol: str, through: str) -> str:
    """A fit in one sentence."""
    return (
        f"Power law through {through}: {law.factor:.4g} * {symbol}^({law.exponent:.4g}), "
        f"R\N{SUPERSCRIPT TWO} = {law.r_squared:.3f} of the logarithms, {law.points} points, where {symbol} is the "
        "horizontal axis."
    )


def _finish(axes: Axes, values: list[float], which: str) -> None:
    """Logarithmic where values spread; with plain numbers, also between the powers of ten if there are few."""
    if min(values) > 0 and (spread := max(values) / min(values)) >= DECADE:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        if spread < FEW_DECADES:
            axis = axes.xaxis if which == "x" else axes.yaxis
            axis.set_major_formatter(PLAIN)
            # Labels of many decades would run into each other.
            axis.set_minor_locator(LogLocator(subs=(2, 3, 5) if spread < 30 else (3,)))
            axis.set_minor_formatter(PLAIN)
            axis.set_tick_params(which="both", length=3.5, pad=3.5)  # labels on one line
    handles = axes.get_legend_handles_labels()[0]
    if handles:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)


def _label(column: Column) -> str:
    return NAMES.get(column.metric, column.metric)


def _title(column: Column) -> str:
    name = _label(column)
    name = name[0].upper() + name[1:]
    return name if column.protocol is None else f"{name} ({column.protocol.letter})"


def _verbatim(text: str) -> str:
    """Text of a run, in which a dollar is no formula."""
    return text.replace("$", r"\$")


def _protocol_note(column: Column) -> list[str]:
    protocol = column.protocol
    return (
        []
        if protocol is None
        else [f"Protocol ({protocol.letter}) of {protocol.evaluation}, as listed above."]
    )


def _averaged(series: Series) -> list[tuple[float, float]]:
    """At most POINTS means of neighbours."""
    size = -(-len(series) // POINTS)
    parts = [series[i : i + size] for i in range(0, len(series), size)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]
