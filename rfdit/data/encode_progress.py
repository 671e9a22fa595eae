"""How far the encoding of shards is."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30


class EncodeProgress:
    """A bar with shards, images per second and time left; in a log file, a line now and then.

    shards: how many this process has to see to.
    shown: whether it is this process that tells; all have about as many.
    """

    def __init__(self, *, shards: int, shown: bool) -> None:
        self.shards, self.shown = shards, shown
        self._console = Console()
        self._bar: Progress | None = None

    def __enter__(self) -> "EncodeProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, *, finished: int) -> None:
        """Encoding begins; so many shards were there already."""
        self._first = self._shard = finished
        self._part, self._images = 0.0, 0
        self._started = self._told = time.monotonic()
        if self.shown and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("encoding"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("shards  {task.fields[speed]:.0f} img/s "),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self.shards, completed=finished, speed=0)

    def advance(self, images: int, part: float) -> None:
        """More images are encoded, and with them this part of the current shard."""
        self._images += images
        self._part = part
        self._tell(now=False)

    def next_shard(self) -> None:
        """The current shard is done."""
        self._shard += 1
        self._part = 0.0
        self._tell(now=True)

    def _tell(self, *, now: bool) -> None:
        elapsed = time.monotonic() - self._started
        done, speed = self._shard + self._part, self._images / max(elapsed, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, speed=speed)
        elif self.shown and (now or time.monotonic() - self._told > SECONDS_BETWEEN_LINES):
            self._told = time.monotonic()
            left = (self.shards - done) * elapsed / max(done - self._first, 1e-9)
            print(
                f"{done:.1f} of {self.shards} shards  {self._images:,} images  {speed:.0f} img/s  "
                f"{left / 60:.1f} min left",
                flush=True,
            )
