"""How far sampling is."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30


class SampleProgress:
    """A bar with pictures per second and time left; in a log file, a line now and then.

    total: pictures that this process has to make; all have about as many.
    world: how many processes there are. shown: whether it is this one that tells.
    """

    def __init__(self, *, total: int, world: int, shown: bool) -> None:
        self.total, self.world, self.shown = total, world, shown
        self._console = Console()
        self._bar: Progress | None = None
        self._done = 0

    def __enter__(self) -> "SampleProgress":
        self._started = self._told = time.monotonic()
        if self.shown and self._console.is_terminal:
            name = "sampling" if self.world == 1 else f"sampling, 1 of {self.world} devices"
            self._bar = Progress(
                TextColumn(name),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("pictures  {task.fields[speed]:.2f}/s "),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, speed=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, pictures: int) -> None:
        """So many more are made."""
        self._done += pictures
        elapsed = time.monotonic() - self._started
        speed = self._done / max(elapsed, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=speed)
        elif self.shown and time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            left = (self.total - self._done) / speed / 60
            print(
                f"{self._done:,} of {self.total:,} pictures  {speed:.2f}/s  {left:.1f} min left", flush=True
            )
