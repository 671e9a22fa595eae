"""`log.txt` in a run's folder: what is printed, line by line with the time."""

import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rfdit.processes.rank import is_rank_zero
from rfdit.progress import live_console
from rfdit.storage.atomic import naming

LOG = "log.txt"


class Tee(io.TextIOBase):
    """A stream to the screen whose whole lines are also written to a file.

    screen: the stream itself, for a progress bar, which does not belong into the file.

    An error of the file names it; one of the screen does not.
    """

    def __init__(self, screen: Any, file: io.TextIOBase, path: Path) -> None:
        self.screen, self._file, self._path = screen, file, path
        self._shown, self._logged = "", ""  # the line that has begun: above a bar, and in the file

    def write(self, text: str) -> int:
        if (console := live_console()) is None:
            self.screen.write(text)
        else:  # which prints above the bar
            *lines, self._shown = (self._shown + text).split("\n")
            for line in lines:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.log_only(text)
        return len(text)

    def log_only(self, text: str) -> None:
        """Write to the file alone."""
        *lines, self._logged = (self._logged + text).split("\n")
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        with naming(self._path):
            self._file.write("".join(f"{now}  {line}\n" for line in lines if line))
            self._file.flush()

    def flush(self) -> None:
        self.screen.flush()

    def isatty(self) -> bool:
        return bool(self.screen.isatty())

    def fileno(self) -> int:
        return int(self.screen.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self.screen.encoding)


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Context of a run, on rank 0 of which all that is printed is added to its log, errors with their traceback."""
    if not is_rank_zero():
        yield
        return
    before = sys.stdout, sys.stderr
    path = folder / LOG
    file = path.open("a", encoding="utf-8", errors="replace")
    out, err = Tee(sys.stdout, file, path), Tee(sys.stderr, file, path)
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
    try:
        yield
    except Exception:
        err.log_only(traceback.format_exc())
        raise
    finally:
        sys.stdout, sys.stderr = before
        with naming(path):  # what is still in the file's buffer
            file.close()
