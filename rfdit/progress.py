"""Progress of long work: a bar in a terminal, and a line from time to time in a log file."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

BAR_SECONDS = 0.5  # between two updates of a bar
LINE_SECONDS = 10.0  # between two lines in a log file
DELAY = 3.0  # seconds after which `tracked` shows something
T = TypeVar("T")
_bars: list["_Bar"] = []  # those on the screen


class ProgressDisplay:
    """A context that shows how much of some work is done, how fast it goes and how long it will take.

    name: the work, such as `training`. unit: what is counted, such as `steps`.
    total: None if the end is not known.
    completed: work done before, which does not count for the time left.
    shown: False shows nothing, as on all ranks but one.
    delay: seconds of work before anything is shown.
    limit: the seconds after which the work ends in any case; None without such a limit.
    """

    def __init__(
        self,
        name: str,
        *,
        total: float | None,
        unit: str,
        completed: float = 0,
        shown: bool = True,
        delay: float = 0.0,
        limit: Callable[[], float] | None = None,
    ) -> None:
        self.name, self.unit, self.total, self.completed, self.shown = name, unit, total, completed, shown
        # A run's log is written beside the screen, and has lines instead of a bar.
        self._log: Callable[[str], None] | None = getattr(sys.stdout, "log_only", None)
        self._console = Console(file=getattr(sys.stdout, "screen", None))
        self._bar: _Bar | None = None
        self._first, self._limit = completed, limit
        self._started = time.monotonic()
        first_wait = 0.0 if self._console.is_terminal else LINE_SECONDS
        self._next = self._started + max(delay, first_wait)
        self._next_line = self._started + max(delay, LINE_SECONDS)

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def due(self) -> bool:
        """True if an update now would be drawn, so that costly notes need not be made for others."""
        return self.shown and time.monotonic() >= self._next

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return max(time.monotonic() - self._started, 1e-9)

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest will take at the speed so far, or until the limit; None if that is not known."""
        done, known = self.completed - self._first, []
        if self.total is not None and done > 0:
            known.append((self.total - self.completed) * self.elapsed / done)
        if self._limit is not None:
            known.append(max(self._limit(), 0.0))
        return min(known, default=None)

    def update(self, completed: float, note: str = "", *, now: bool = False) -> None:
        """Show that this much of the work is done; draws nothing if it is too early.

        note: shown beside it, such as the loss and the speed. now: draw it in any case.
        """
        self.completed = completed
        if not self.shown or not (now or self.due):
            return
        time_now = time.monotonic()
        if not self._console.is_terminal:
            self._next = time_now + LINE_SECONDS
            print(self._line(note), flush=True)
            return
        self._next = time_now + BAR_SECONDS
        self._draw(note)
        if self._log is not None and time_now >= self._next_line:
            self._next_line = time_now + LINE_SECONDS
            self._log(self._line(note) + "\n")

    def advance(self, amount: float, note: str = "") -> None:
        """Show that so much more of the work is done."""
        self.update(self.completed + amount, note)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._draw(self._bar.note)
            self._bar.stop()
            _bars.remove(self._bar)
            self._bar = None

    def _draw(self, note: str) -> None:
        if self._bar is None:
            self._bar = _Bar(self.name, total=self.total, console=self._console)
            _bars.append(self._bar)
            self._bar.start()
        self._bar.note = note
        self._bar.update(self._bar.task_ids[0], completed=self.completed, progress=self._progress())

    def _progress(self) -> str:
        of, share = "", ""
        if self.total is not None:
            of, share = f" of {_number(self.total)}", f", {100 * self.completed / max(self.total, 1e-9):.0f}%"
        remaining = self.remaining
        left = "" if remaining is None else f"  remaining {duration(remaining)}"
        done = f"{_number(self.completed)}{of} {self.unit}{share}"
        return f"{done}  elapsed {duration(self.elapsed)}{left}"

    def _line(self, note: str) -> str:
        return f"{self.name}: {self._progress()}" + (f"  {note}" if note else "")


class _Bar(Progress):
    """A bar with its note in a line of its own below."""

    def __init__(self, name: str, *, total: float | None, console: Console) -> None:
        self.note = ""
        super().__init__(
            TextColumn(name),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[progress]}"),
            console=console,
            # What is printed stands above it; the stream of a run's log sees to that by itself.
            redirect_stdout=not hasattr(sys.stdout, "screen"),
            redirect_stderr=not hasattr(sys.stderr, "screen"),
        )
        self.add_task("", total=total, progress="")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(f"  {self.note}", no_wrap=True, overflow="ellipsis")


def live_console() -> Console | None:
    """The console of the bar on the screen, above which it prints; None without a bar."""
    return _bars[-1].console if _bars else None


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03; or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or value.is_integer() else f"{value:,.1f}"


def tracked(items: Iterable[T], name: str, *, total: int, unit: str) -> Iterator[T]:
    """The items, with a display of how many have come after the first seconds."""
    with ProgressDisplay(name, total=total, unit=unit, delay=DELAY) as display:
        for item in items:
            display.advance(1)
            yield item
