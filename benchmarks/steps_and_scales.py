"""How many held-out prompts of data=shapes come out right, by steps and solver, and by guidance and scale.

    python benchmarks/steps_and_scales.py --ckpt RUN --out docs

Every point is of the same prompts from the same noise: the twelve things that no training picture
shows, `--pictures` of each. A picture is right if the scene nearest to it is the prompt's, in size,
colour and shape (`rfdit.eval.prompt_accuracy`). Steps are compared at equal numbers of evaluations of
the velocity, with classifier-free guidance of scale 3; scales with 16 steps of Euler's method.

Writes steps_and_scales.csv, which a second run goes on with, and from it images/steps.png and
images/scales.png. Bars are one standard error, sqrt(p (1 - p) / n); since all points share their noise,
differences between points are surer than the bars alone say.
"""

import argparse
import csv
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from rfdit.data.scenes import HELD_OUT_THINGS, held_out_prompts
from rfdit.eval.prompt_accuracy import PromptAccuracy
from rfdit.loading import load
from rfdit.sampler import (
    AdaptiveProjected,
    ClassifierFree,
    Euler,
    Guidance,
    GuidanceInterval,
    Heun,
    Midpoint,
    Pipeline,
    Sampler,
    Solver,
)

EVALUATIONS = (1, 2, 4, 8, 16, 32, 64)
SCALES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
SOLVERS: dict[str, tuple[Solver, int]] = {
    "Euler": (Euler(), 1),
    "Heun": (Heun(), 2),
    "midpoint": (Midpoint(), 2),
}
STEPS, SCALE = 16, 3.0  # of the other curve
# Okabe and Ito's, which colour-blind people tell apart; markers and dashes do so in grey.
STYLES = [("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", ":")]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One sampler: which curve it is on, and where."""

    curve: str
    name: str
    x: float


@dataclass(frozen=True, kw_only=True)
class Row(Point):
    """A measured point: shares of n pictures that are right."""

    n: int
    colour: float
    shape: float
    size: float
    scene: float


def guidances(scale: float) -> dict[str, Guidance]:
    """Those that are compared."""
    return {
        "cfg": ClassifierFree(scale=scale),
        "interval": GuidanceInterval(inside=ClassifierFree(scale=scale), low=0.0, high=0.7),
        "apg": AdaptiveProjected(scale=scale, momentum=-0.5),
    }


def points() -> Iterator[tuple[Point, Sampler]]:
    """All of both curves."""
    for evaluations, (name, (solver, each)) in itertools.product(EVALUATIONS, SOLVERS.items()):
        if evaluations % each == 0:
            sampler = Sampler(solver=solver, guidance=ClassifierFree(scale=SCALE), steps=evaluations // each)
            yield Point(curve="steps", name=name, x=evaluations), sampler
    for scale in SCALES:
        for name, guidance in guidances(scale).items():
            sampler = Sampler(solver=Euler(), guidance=guidance, steps=STEPS)
            yield Point(curve="scales", name=name, x=scale), sampler


def measure(pipeline: Pipeline, point: Point, prompts: list[str]) -> Row:
    """Samples and judges."""
    metric = PromptAccuracy()
    metric.update(pipeline(prompts, seed=0), prompts)
    shares = {name: float(share) for name, share in metric.compute().items()}
    return Row(
        **asdict(point), n=len(prompts), **{k: shares[k] for k in ("colour", "shape", "size", "scene")}
    )


def read(file: Path) -> list[Row]:
    """What is measured already."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [
            Row(
                curve=row["curve"],
                name=row["name"],
                n=int(row["n"]),
                **{key: float(row[key]) for key in ("x", "colour", "shape", "size", "scene")},
            )
            for row in csv.DictReader(lines)
        ]


def write(file: Path, rows: list[Row]) -> None:
    """All rows, in their order."""
    with file.open("w", newline="") as lines:
        table = csv.DictWriter(lines, list(asdict(rows[0])))
        table.writeheader()
        table.writerows(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()} for row in rows
        )


def plot(rows: list[Row], curve: str, file: Path, *, label: str, title: str) -> None:
    """A curve's shares of pictures that are right, over a logarithmic axis."""
    figure = Figure(figsize=(6.4, 4.0), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    mine = [row for row in rows if row.curve == curve]
    for name, (colour, marker, line) in zip(dict.fromkeys(row.name for row in mine), STYLES):
        found = sorted((row for row in mine if row.name == name), key=lambda row: row.x)
        shares = [row.scene for row in found]
        errors = [math.sqrt(p * (1 - p) / row.n) for p, row in zip(shares, found)]
        axes.errorbar(
            [row.x for row in found], shares, errors, label=name, color=colour, marker=marker, linestyle=line,
            capsize=3,
        )  # fmt: skip
    places = sorted({row.x for row in mine})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{x:g}" for x in places])
    axes.minorticks_off()
    axes.set(xlabel=label, ylabel="prompts with everything right", ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file)


def draw(folder: Path, rows: list[Row]) -> None:
    """Both plots."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    n = min(row.n for row in rows)
    plot(
        rows, "steps", folder / "images/steps.png", label="evaluations of the velocity",
        title=f"Solvers at guidance {SCALE:g}, {n} pictures a point",
    )  # fmt: skip
    plot(
        rows, "scales", folder / "images/scales.png", label="guidance scale",
        title=f"Guidances with {STEPS} Euler steps, {n} pictures a point",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ckpt", required=True, help="a run of data=shapes, a .ckpt file or an exported folder"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and of images/")
    parser.add_argument("--pictures", type=int, default=8, help="of each prompt")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args()
    pipeline = load(args.ckpt, accelerator=args.device, batch_size=48).pipeline
    prompts = [p for p in held_out_prompts(len(HELD_OUT_THINGS)) for _ in range(args.pictures)]
    file = args.out / "steps_and_scales.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read(file) if row.n == len(prompts)]
    done = {(row.curve, row.name, row.x) for row in rows}
    for point, sampler in points():
        if (point.curve, point.name, float(point.x)) not in done:
            rows.append(measure(pipeline.with_sampler(sampler), point, prompts))
            print(rows[-1], flush=True)
            write(file, rows)
    draw(args.out, rows)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
