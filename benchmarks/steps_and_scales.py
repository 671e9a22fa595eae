"""Share of held-out prompts of data=shapes that come out right, by solver and steps, and by guidance and scale.

    python benchmarks/steps_and_scales.py --ckpt RUN --out docs

Every point uses the same prompts and the same noise: the twelve things that no training image contains,
`--images` of each. An image is right if the scene nearest to it is that of the prompt, in size, colour and shape
(`rfdit.eval.metrics.prompt_accuracy`). Solvers are compared at equal numbers of velocity evaluations, with
classifier-free guidance of scale 3; guidance scales with 16 steps of Euler's method.

Writes steps_and_scales.csv, which a second run continues, and images/steps.png and images/scales.png. Bars are
one standard error, sqrt(p (1 - p) / n). Since all points share their noise, differences between points are more
certain than the bars suggest.
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

from rfdit.data.shapes.scenes import HELD_OUT_THINGS, held_out_prompts
from rfdit.eval.metrics.prompt_accuracy import PromptAccuracy
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
STEPS, SCALE = 16, 3.0  # fixed while the other varies
# Okabe and Ito's colours, which colour-blind people can distinguish; markers and dashes also work in grey.
STYLES = [("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", ":")]


@dataclass(frozen=True, kw_only=True)
class Point:
    """The curve of a sampler, and its position on it."""

    curve: str
    name: str
    x: float


@dataclass(frozen=True, kw_only=True)
class Row(Point):
    """A measured point: the shares of n images that are right."""

    n: int
    colour: float
    shape: float
    size: float
    scene: float


def guidances(scale: float) -> dict[str, Guidance]:
    """The guidances that are compared."""
    return {
        "cfg": ClassifierFree(scale=scale),
        "interval": GuidanceInterval(inside=ClassifierFree(scale=scale), low=0.0, high=0.7),
        "apg": AdaptiveProjected(scale=scale, momentum=-0.5),
    }


def points() -> Iterator[tuple[Point, Sampler]]:
    """All points of both curves, with their samplers."""
    for evaluations, (name, (solver, each)) in itertools.product(EVALUATIONS, SOLVERS.items()):
        if evaluations % each == 0:
            sampler = Sampler(solver=solver, guidance=ClassifierFree(scale=SCALE), steps=evaluations // each)
            yield Point(curve="steps", name=name, x=evaluations), sampler
    for scale in SCALES:
        for name, guidance in guidances(scale).items():
            sampler = Sampler(solver=Euler(), guidance=guidance, steps=STEPS)
            yield Point(curve="scales", name=name, x=scale), sampler


def measure(pipeline: Pipeline, point: Point, prompts: list[str]) -> Row:
    """Sample the prompts and measure the shares that are right."""
    metric = PromptAccuracy()
    metric.update(pipeline(prompts, seed=0), prompts)
    shares = {name: float(share) for name, share in metric.compute().items()}
    return Row(
        **asdict(point), n=len(prompts), **{k: shares[k] for k in ("colour", "shape", "size", "scene")}
    )


def read(file: Path) -> list[Row]:
    """The rows that were measured before."""
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
    """Write all rows, in order."""
    with file.open("w", newline="") as lines:
        table = csv.DictWriter(lines, list(asdict(rows[0])))
        table.writeheader()
        table.writerows(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()} for row in rows
        )


def plot(rows: list[Row], curve: str, file: Path, *, label: str, title: str) -> None:
    """Plot the shares of right images of a curve, over a logarithmic axis."""
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
    ticks = sorted({row.x for row in mine})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.set(xlabel=label, ylabel="prompts with everything right", ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file)


def draw(folder: Path, rows: list[Row]) -> None:
    """Draw both plots."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    n = min(row.n for row in rows)
    plot(
        rows, "steps", folder / "images/steps.png", label="evaluations of the velocity",
        title=f"Solvers at guidance {SCALE:g}, {n} images a point",
    )  # fmt: skip
    plot(
        rows, "scales", folder / "images/scales.png", label="guidance scale",
        title=f"Guidances with {STEPS} Euler steps, {n} images a point",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ckpt", required=True, help="a run of data=shapes, a .ckpt file or an exported folder"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and for images/")
    parser.add_argument("--images", type=int, default=8, help="images of each prompt")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args()
    pipeline = load(args.ckpt, accelerator=args.device, batch_size=48).pipeline
    prompts = [p for p in held_out_prompts(len(HELD_OUT_THINGS)) for _ in range(args.images)]
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
