"""Sheets of samples, small enough to stand side by side on a page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rfdit.data.decode import decode_rgb, read_image
from rfdit.data.skips import SkippedSampleError
from rfdit.reporting.runs import Run

SIDE = 1280  # pixels of a sheet at most, for zooming in
MANY, SMALL_SIDE = 16, 560  # more sheets than this are kept smaller, so that the page can be opened


@dataclass(frozen=True)
class Sheet:
    """A run's sheet at a step, as JPEG."""

    run: str
    step: int
    jpeg: bytes


def read_sheets(runs: Sequence[Run]) -> tuple[int | None, list[Sheet], list[str]]:
    """The runs' sheets at the last step that all of them have, else each run's last.

    Returns the common step or None, the sheets, and a sentence for each file that cannot be read.
    """
    runs = [run for run in runs if run.sheets]
    common = set.intersection(*(set(run.sheets) for run in runs)) if runs else set()
    side = SIDE if len(runs) <= MANY else SMALL_SIDE
    sheets, unread = [], []
    for run in runs:
        step = max(common or run.sheets)
        try:
            sheets.append(Sheet(run.name, step, _read_jpeg(run.sheets[step], side)))
        except SkippedSampleError as error:
            unread.append(f"{run.sheets[step]} cannot be read: {error.detail or error}")
    return max(common, default=None), sheets, unread


def same_noise(runs: Sequence[Run]) -> bool:
    """True if the sheets of all runs start from the same noise, that is, one seed and one shape of latents.

    Runs from anybody have only settings, of which nothing but rfdit's networks is built.
    """
    noises = set()
    for run in runs:
        if run.sheets:
            grid = (run.config.get("callbacks") or {}).get("grid") or {}
            model = run.config.get("model") or {}
            noises.add(str((grid.get("seed"), model.get("in_channels"), model.get("input_size"))))
    return len(noises) == 1


def _read_jpeg(file: Path, side: int) -> bytes:
    small = decode_rgb(read_image(str(file)), background="white")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88, subsampling=0)
    return buffer.getvalue()
