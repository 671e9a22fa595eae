"""What became of each row of a set of tables, in a file of five bytes a row that all who fetch share."""

import os
import struct
import tempfile
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rfdit.data.skips import SkipReason

RECORD = struct.Struct("<BI")  # a code, and when: seconds since 1970
UNKNOWN, ALIVE = 0, 1
# Their codes are their places here plus 2. They are in files: only ever add to the end.
CAUSES = (
    SkipReason.FETCH_REFUSED,
    SkipReason.FETCH_CONNECTION,
    SkipReason.FETCH_TIMEOUT,
    SkipReason.FETCH_NOT_FOUND,
    SkipReason.FETCH_FORBIDDEN,
    SkipReason.FETCH_TOO_MANY_REQUESTS,
    SkipReason.FETCH_SERVER_ERROR,
    SkipReason.FETCH_REDIRECTS,
    SkipReason.FETCH_NOT_AN_IMAGE,
    SkipReason.FETCH_OPTED_OUT,
    SkipReason.FETCH_TRUNCATED,
    SkipReason.FETCH_TOO_LARGE,
    SkipReason.FETCH_HASH,
)
# Causes that may be gone after a while.
PASSING = {
    SkipReason.FETCH_CONNECTION,
    SkipReason.FETCH_TIMEOUT,
    SkipReason.FETCH_TOO_MANY_REQUESTS,
    SkipReason.FETCH_SERVER_ERROR,
    SkipReason.FETCH_TRUNCATED,
}
AT_ONCE = 2**20  # records in memory while they are counted


class Outcomes:
    """Which rows are alive and which dead, and of what: known to all processes that open the same file.

    path: of the file; None is a temporary one, of this process and those that it forks.

    Each row is written on its own, in place. Of two processes that write one row at the same moment,
    the last is right.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is None:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._close = weakref.finalize(self, os.close, self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def cause(self, row: int, *, ask_again: float) -> SkipReason | None:
        """Why a row is known to be dead; None if it should be asked.

        ask_again: seconds after which it should be, if the cause may be gone by then.
        """
        code, when = self._read(row)
        if code <= ALIVE:
            return None
        cause = CAUSES[code - 2]
        return None if cause in PASSING and time.time() - when >= ask_again else cause

    def put(self, row: int, cause: SkipReason | None) -> SkipReason | None:
        """Writes what a row died of, None if it is alive; returns what it was dead of before."""
        before, _ = self._read(row)
        code = ALIVE if cause is None else CAUSES.index(cause) + 2
        if code != before or cause in PASSING:
            os.pwrite(self._file, RECORD.pack(code, int(time.time())), row * RECORD.size)
        return None if before <= ALIVE else CAUSES[before - 2]

    def _read(self, row: int) -> tuple[int, int]:
        record = os.pread(self._file, RECORD.size, row * RECORD.size)
        code, when = RECORD.unpack(record) if len(record) == RECORD.size else (UNKNOWN, 0)
        # What only another version has a name for, or nobody, is asked again.
        return (code, when) if code < len(CAUSES) + 2 else (UNKNOWN, 0)


def count_outcomes(path: Path) -> tuple[int, Counter[str]]:
    """How many rows are alive, and how many died of what."""
    counts = np.zeros(256, np.int64)
    with path.open("rb") as file:
        while records := file.read(AT_ONCE * RECORD.size):
            whole = len(records) // RECORD.size * RECORD.size
            counts += np.bincount(np.frombuffer(records[: whole : RECORD.size], np.uint8), minlength=256)
    dead = Counter({str(cause): int(n) for cause, n in zip(CAUSES, counts[2:]) if n})
    return int(counts[ALIVE]), dead
