"""Sheets of samples, small enough to stand side by side in a page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from rfdit.reporting.runs import Run

SIDE = 560  # pixels at most: twice what a page shows, for sharp screens and print


@dataclass(frozen=True)
class Sheet:
    """A run's sheet at a step, as JPEG."""

    run: str
    step: int
    jpeg: bytes


def choose_sheets(runs: Sequence[Run]) -> tuple[int | None, dict[str, tuple[int, Path]]]:
    """The last step for which all runs that have sheets have one, and the sheets by run.

    Without such a step each run's last, and None.
    """
    having = [run for run in runs if run.grids]
    if not having:
        return None, {}
    common = max(set.intersection(*(set(run.grids) for run in having)), default=None)
    steps = {run.name: max(run.grids) if common is None else common for run in having}
    return common, {run.name: (steps[run.name], run.grids[steps[run.name]]) for run in having}


def same_noise(runs: Sequence[Run]) -> bool:
    """Whether the sheets of all runs that have some start from the same noise: of one seed and one shape."""
    noises = set()
    for run in runs:
        if run.grids:
            grid = (run.config.get("callbacks") or {}).get("grid") or {}
            model = run.config.get("model") or {}
            noises.add(str((grid.get("seed"), model.get("in_channels"), model.get("input_size"))))
    return len(noises) == 1


def read_sheet(run: str, step: int, file: Path) -> Sheet:
    """Scaled down; raises ValueError for a file that is no PNG."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            picture = image.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88, subsampling=0)
    return Sheet(run, step, buffer.getvalue())
