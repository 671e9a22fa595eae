"""Dead links: which rows' URLs gave an image and which failed, known to all processes of a run."""

import atexit
import os
import struct
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rfdit.counted import counted
from rfdit.data.skips import SkipReason
from rfdit.processes.rank import Process
from rfdit.storage.atomic import write_json

RECORD = struct.Struct("<BI")  # a code, and a time in seconds since 1970
RECORDS_AT_ONCE = 2**20  # records in memory while they are counted
UNKNOWN, ALIVE = 0, 1
# A cause's code is its position here plus 2. Files contain the codes: only ever append to these reasons.
CAUSES = tuple(reason for reason in SkipReason if reason.startswith("fetch_"))
TRANSIENT = {
    SkipReason.FETCH_CONNECTION,
    SkipReason.FETCH_TIMEOUT,
    SkipReason.FETCH_TOO_MANY_REQUESTS,
    SkipReason.FETCH_SERVER_ERROR,
    SkipReason.FETCH_TRUNCATED,
}


class LinkCounts:
    """Numbers of live links, and of dead links by cause."""

    def __init__(self, alive: int = 0, dead: Mapping[str, int] | None = None) -> None:
        self.alive, self.dead = alive, Counter(dead or {})

    def merge(self, other: "LinkCounts") -> None:
        """Add other counts."""
        self.alive += other.alive
        self.dead.update(other.dead)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, the most frequent causes first."""
        return {"alive": self.alive, "dead": dict(self.dead.most_common())}

    def report(self) -> dict[str, Any]:
        """Totals and causes, the most frequent first."""
        total = self.alive + self.dead.total()
        share = round(self.alive / total, 4) if total else None
        return {"urls": total, "alive_share": share} | self.as_dict()

    def summary(self) -> str:
        """Totals and causes in one line."""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.dead.most_common())
        every = counted(self.alive + self.dead.total(), "URL")
        return f"{self.alive} of {every} alive{f'; dead: {causes}' if causes else ''}"


class LinkStates:
    """The state of each row's URL: unknown, alive, or dead with a cause.

    path: a file of five bytes a row, which all processes of a run share. None for a temporary file of
        this process and its forks.

    Each row is written in place, on its own. If two processes write a row at the same moment, the last wins.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is None:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def cause(self, row: int, *, retry_after: float) -> SkipReason | None:
        """The reason why a row's URL is known to be dead; None if the URL should be fetched.

        retry_after: seconds after which a transient cause is forgotten.
        """
        code, when = self._read(row)
        if code <= ALIVE:
            return None
        cause = CAUSES[code - 2]
        return None if cause in TRANSIENT and time.time() - when >= retry_after else cause

    def record(self, row: int, cause: SkipReason | None) -> None:
        """Write the reason why a row's URL is dead; None if it is alive."""
        code = ALIVE if cause is None else CAUSES.index(cause) + 2
        if cause in TRANSIENT or code != self._read(row)[0]:
            os.pwrite(self._file, RECORD.pack(code, int(time.time())), row * RECORD.size)

    def counts(self) -> LinkCounts:
        """The counts of all processes, in this run and in those that it resumes."""
        codes = np.zeros(256, np.int64)
        offset = 0
        while len(records := os.pread(self._file, RECORDS_AT_ONCE * RECORD.size, offset)) >= RECORD.size:
            whole = len(records) // RECORD.size * RECORD.size
            codes += np.bincount(np.frombuffer(records[: whole : RECORD.size], np.uint8), minlength=256)
            offset += whole
        dead = {str(cause): int(count) for cause, count in zip(CAUSES, codes[2:]) if count}
        return LinkCounts(int(codes[ALIVE]), dead)

    def _read(self, row: int) -> tuple[int, int]:
        record = os.pread(self._file, RECORD.size, row * RECORD.size)
        code, when = RECORD.unpack(record) if len(record) == RECORD.size else (UNKNOWN, 0)
        # A row with the code of a later version is fetched again.
        return (code, when) if code < len(CAUSES) + 2 else (UNKNOWN, 0)


class DeadLinks:
    """Remembers dead links in a folder that all processes of all machines share.

    A URL counts once, however often it is fetched. The report is dead_links.json in the folder.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)
        self._opened: dict[Path, LinkStates] = {}
        self._reporter: int | None = None  # the process that writes the report

    def open(self, tables: str, rules: str) -> LinkStates:
        """States of the rows of `tables`, which are all unknown under new `rules` for what is alive."""
        path = self.folder / "rows" / tables / rules
        if path not in self._opened:
            self._opened[path] = LinkStates(path)
        return self._opened[path]

    def counts(self) -> LinkCounts:
        """Counts of all processes, for the tables that were opened here."""
        counts = LinkCounts()
        for states in self._opened.values():
            counts.merge(states.counts())
        return counts

    def report_at_exit(self) -> None:
        """Let this process write the report when it ends; the first one of a machine prints it as well."""
        if self._reporter is None:
            self._reporter = os.getpid()
            atexit.register(self._report)

    def _report(self) -> None:
        if self._reporter != os.getpid():  # a fork
            return
        path = self.folder / "dead_links.json"
        try:
            counts = self.counts()
            if not counts.alive and not counts.dead:
                return
            write_json(path, counts.report())
        except OSError as error:  # a folder that is gone does not make a finished run fail
            print(f"{path} cannot be written: {error}", flush=True)
            return
        if Process.current().local_rank == 0:
            print(f"{counts.summary()}; see {path}", flush=True)
