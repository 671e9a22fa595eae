"""A progress bar for what is usually done before anybody looks."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 3.0  # seconds without a word
T = TypeVar("T")


def slow_progress(items: Iterable[T], what: str, *, total: int) -> Iterator[T]:
    """The items; after `PATIENCE` seconds a bar tells how many have come."""
    columns = [
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    ]
    progress = Progress(*columns)
    task = progress.add_task("", total=total)
    began, shown = time.monotonic(), False
    try:
        for item in items:
            progress.advance(task)
            if not shown and time.monotonic() - began > PATIENCE:
                progress.start()
                shown = True
            yield item
    finally:
        if shown:
            progress.stop()
