"""Plots of the report, readable without colour, as PNG for papers and SVG for the page; and their power law."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from rfdit.counted import counted
from rfdit.reporting.metrics import Metric
from rfdit.reporting.runs import Run, Series
from rfdit.reporting.table import prefixed

# Okabe and Ito's colours without yellow, which is too light on white; https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LISTED = 28  # runs that look different; more are drawn, but not listed in the legend
DECADE = 4.0  # an axis is logarithmic from this ratio of largest to smallest value on
FEW_DECADES = 1000.0  # ratio up to which 2, 3 and 5 times a power of ten are labelled too
PLAIN = FuncFormatter(lambda value, _: prefixed(value) if value >= 1e6 else f"{value:g}")
POINTS = 200  # most points of a drawn curve, so that a page of many long runs stays small
STYLE: Any = {"font.size": 10, "axes.grid": True, "grid.color": "#dddddd", "svg.hashsalt": "rfdit"}

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """A figure. name: its file's name. title: its heading. notes: sentences below it."""

    name: str
    title: str
    figure: Figure
    notes: list[str]

    def bytes(self, form: str) -> bytes:
        """The figure as `png`, on white, or as `svg`, on whatever is behind it."""
        buffer = io.BytesIO()
        settings: Any = {"metadata": {"Date": None}, "transparent": True} if form == "svg" else {}
        with mpl.rc_context(STYLE):
            self.figure.savefig(buffer, format=form, dpi=150, bbox_inches="tight", **settings)
        return buffer.getvalue()


def make_plots(runs: Sequence[Run], metric: Metric | None) -> list[Plot]:
    """The plots that the runs' numbers allow."""
    plots = [loss_plot(runs, name) for name in ("train/loss", "val/loss")]
    if metric is not None:
        plots += [plot(runs, metric) for plot in (steps_plot, compute_plot, cost_plot)]
    return [plot for plot in plots if plot is not None]


def loss_plot(runs: Sequence[Run], name: str) -> Plot | None:
    """A loss against steps."""
    metric = Metric(name)
    logged = [(run, series) for run in runs if (series := metric.series(run))]
    curves = [(run, _averaged(series)) for run, series in logged]
    thinned = any(len(series) > POINTS for _, series in logged)
    notes = (
        [f"Each curve has at most {POINTS} points, means of neighbouring logged steps."] if thinned else []
    )
    file = name.replace("/", "_")
    return _plot(file, runs, metric, curves, title="", x="training steps", markers=6, notes=notes)


def steps_plot(runs: Sequence[Run], metric: Metric) -> Plot | None:
    """A metric of evaluations over training, for each run that was evaluated more than once."""
    evaluated = runs if metric.footnote else []
    curves = [(run, series) for run in evaluated if len(series := metric.series(run)) > 1]
    return _plot("steps", runs, metric, curves, title=" over training", x="training steps", markers=12)


def compute_plot(runs: Sequence[Run], metric: Metric) -> Plot | None:
    """A metric against training compute, with a power law through the last points of finished runs."""
    curves = []
    for run in runs:
        points = [(compute, value) for step, value in metric.series(run) if (compute := run.compute(step))]
        if points:
            curves.append((run, points))
    finished = _finished([run for run, _ in curves])
    law, note = _fit(
        [points[-1] for run, points in curves if run in finished], "C", "the finished runs' ends"
    )
    title, x = " against training compute", "training compute (MACs: 3 x forward x images)"
    return _plot("compute", runs, metric, curves, title=title, x=x, law=law, notes=[note], log_x=True)


def cost_plot(runs: Sequence[Run], metric: Metric) -> Plot | None:
    """A metric against the cost of a forward pass, at the last step for which all finished runs have it.

    A run that was stopped early would move all of them to its step. If none is finished, all are shown.
    """
    measured = [(run, run.gmacs, series) for run in runs if run.gmacs and (series := metric.series(run))]
    finished = _finished([run for run, _, _ in measured])
    shown = [(run, gmacs, dict(series)) for run, gmacs, series in measured if run in finished]
    common = set.intersection(*(set(series) for _, _, series in shown)) if shown else set()
    when = f"at step {max(common):,}" if common else "at each run's last step, since they have none in common"
    curves = [(run, [(gmacs, series[max(common or series)])]) for run, gmacs, series in shown]
    law, note = _fit([point for _, (point,) in curves], "G", "the points")
    notes = [note]
    if len(shown) < len(measured):
        notes.append(f"Left out: {counted(len(measured) - len(shown), 'unfinished run')}.")
    title, x = f" against the network's cost, {when}", "forward pass (GMACs for an image)"
    return _plot("gmacs", runs, metric, curves, title=title, x=x, law=law, notes=notes, log_x=True)


def _plot(
    name: str,
    runs: Sequence[Run],
    metric: Metric,
    curves: Sequence[tuple[Run, Curve]],
    *,
    title: str,
    x: str,
    markers: int = 1,
    law: Curve = (),
    notes: Sequence[str] = (),
    log_x: bool = False,
) -> Plot | None:
    """The plot of a curve for each run, or None without any.

    A run looks alike in all plots: its place in the list decides its colour, line and marker.
    title: the text after the metric's name. x: the label of the horizontal axis; log_x: it may be
        logarithmic.
    markers: about how many a curve has; its last point always has one. law: a power law's points.
    """
    if not curves:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0))
        axes = figure.add_subplot()
    label = metric.kind.label
    axes.set_xlabel(x)
    axes.set_ylabel(_verbatim(label))
    axes.spines[["top", "right"]].set_visible(False)
    for run, points in curves:
        place = runs.index(run)
        turn = place // len(COLOURS)
        every = max(1, len(points) // markers)
        axes.plot(
            *zip(*points),
            color=COLOURS[place % len(COLOURS)],
            linestyle=LINES[turn % len(LINES)] if len(points) > 1 else "none",
            marker=MARKERS[(place + turn) % len(MARKERS)],
            markevery=list(range(len(points) - 1, -1, -every)),
            linewidth=1.4,
            markersize=6,
            label=_verbatim(run.name) if place < LISTED else None,
        )
    if law:
        axes.plot(*zip(*law), color="#444444", linewidth=1.3, linestyle=(0, (1, 1.5)), label="power law")
    if log_x:
        axes.xaxis.set_major_formatter(PLAIN)
        _scale(axes, "x", [x for _, points in curves for x, _ in points])
    _scale(axes, "y", [y for _, points in curves for _, y in points])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
    note = metric.footnote
    return Plot(
        name,
        f"{label[0].upper()}{label[1:]}{metric.title.removeprefix(metric.name)}{title}",
        figure,
        [*notes, *([f"Protocol ({note.letter}) of {note.evaluations}, as listed above."] if note else [])],
    )


def _scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Makes an axis logarithmic if its values spread, with plain numbers if they span few decades."""
    if min(values) <= 0 or (spread := max(values) / min(values)) < DECADE:
        return
    axes.set(**{f"{which}scale": "log"})
    if spread < FEW_DECADES:
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_major_formatter(PLAIN)
        # Labels of many decades would run into each other.
        axis.set_minor_locator(LogLocator(subs=(2, 3, 5) if spread < 30 else (3,)))
        axis.set_minor_formatter(PLAIN)
        axis.set_tick_params(which="both", length=3.5, pad=3.5)  # labels on one line


def _fit(points: Curve, symbol: str, through: str) -> tuple[Curve, str]:
    """The power law's points, and a sentence with its formula or the reason why there is none."""
    law = fit_power_law([x for x, _ in points], [y for _, y in points])
    if law is None:
        needs = "it takes three points of positive values, of different cost"
        return (), f"No power law: {needs} ({len(points)} here)."
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    xs = [low * (high / low) ** (i / 60) for i in range(61)]
    return [(x, law(x)) for x in xs], (
        f"Power law through {through}: {law.factor:.4g} * {symbol}^({law.exponent:.4g}), "
        f"R\N{SUPERSCRIPT TWO} = {law.r_squared:.3f} of the logarithms, {law.points} points, where {symbol} is the "
        "horizontal axis."
    )


def _finished(runs: Sequence[Run]) -> Sequence[Run]:
    """The finished runs, or all if none is finished."""
    return [run for run in runs if run.state.name == "finished"] or runs


def _verbatim(text: str) -> str:
    """Text of a run, in which a dollar does not begin a formula."""
    return text.replace("$", r"\$")


def _averaged(series: Series) -> Curve:
    """At most POINTS means of neighbours."""
    size = -(-len(series) // POINTS)
    parts = [series[i : i + size] for i in range(0, len(series), size)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


@dataclass(frozen=True)
class PowerLaw:
    """y = factor * x^exponent. r_squared: R^2 of the fit in logarithms. points: the number of fitted points."""

    factor: float
    exponent: float
    r_squared: float
    points: int

    def __call__(self, x: float) -> float:
        return float(self.factor * x**self.exponent)


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """The power law, or None for fewer than three points, values that are not positive, or a single x."""
    if len(x) < 3 or min(*x, *y) <= 0 or not all(map(math.isfinite, (*x, *y))):
        return None
    log_x, log_y = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    centred = log_x - log_x.mean()
    if not np.any(np.abs(centred) > 1e-9):
        return None
    exponent = float(centred @ log_y / (centred @ centred))
    offset = float(log_y.mean() - exponent * log_x.mean())
    left = log_y - (offset + exponent * log_x)
    total = float(np.square(log_y - log_y.mean()).sum())
    r_squared = 1 - float(np.square(left).sum()) / total if total > 0 else 1.0
    return PowerLaw(math.exp(offset), exponent, r_squared, len(x))
