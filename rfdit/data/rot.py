"""How many of the URLs are still alive, and of what the others died."""

import atexit
import json
import os
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rfdit.data.outcomes import Outcomes, count_outcomes
from rfdit.data.unfinished_files import write_locked

MOST_HOSTS = 10_000  # that are remembered; beyond that, those with the fewest dead are forgotten
WORST_HOSTS = 20  # that a report names


class RotCounts:
    """Counts of URLs alive, dead by cause, and dead by host and cause."""

    def __init__(self) -> None:
        self.alive = 0
        self.dead: Counter[str] = Counter()
        self.hosts: dict[str, Counter[str]] = {}

    def add(self, url: str, cause: str | None) -> None:
        """One more URL, "" if it is not known; cause: of its death, None if it is alive."""
        if cause is None:
            self.alive += 1
            return
        self.dead[cause] += 1
        self.add_host(url, cause)

    def add_host(self, url: str, cause: str, count: int = 1) -> None:
        """Counts at the URL's host alone."""
        if host := _host(url):
            self.hosts.setdefault(host, Counter())[cause] += count
            self._forget_hosts()

    def merge(self, other: dict[str, Any]) -> None:
        """Adds what `as_dict` gave."""
        self.alive += other["alive"]
        self.dead.update(other["dead"])
        for host, causes in other["hosts"].items():
            self.hosts.setdefault(host, Counter()).update(causes)
        self._forget_hosts()

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "alive": self.alive,
            "dead": dict(self.dead),
            "hosts": {k: dict(v) for k, v in self.hosts.items()},
        }

    def report(self) -> dict[str, Any]:
        """For people: totals, causes and the worst hosts, the most frequent first."""
        total = self.alive + self.dead.total()
        return {
            "urls": total,
            "alive": self.alive,
            "alive_share": round(self.alive / total, 4) if total else None,
            "dead": dict(self.dead.most_common()),
            "worst_hosts": {
                host: {"dead": causes.total(), **dict(causes.most_common())}
                for host, causes in self._worst(WORST_HOSTS)
            },
        }

    def summary(self) -> str:
        """The same in a line."""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.dead.most_common())
        return f"{self.alive} of {self.alive + self.dead.total()} URLs alive{f'; dead: {causes}' if causes else ''}"

    def write(self, path: Path) -> None:
        """The report as JSON."""
        write_json(path, self.report())

    def _worst(self, count: int) -> list[tuple[str, Counter[str]]]:
        return sorted(self.hosts.items(), key=lambda host: -host[1].total())[:count]

    def _forget_hosts(self) -> None:
        if len(self.hosts) > MOST_HOSTS:
            self.hosts = dict(self._worst(MOST_HOSTS // 2))


class RotLog:
    """What all processes that fetch find out about URLs; a URL that is asked for again counts once.

    Which rows are dead is kept in files that all of them write to; at which hosts, each process counts
    for itself and writes down, and the counts are added up.

    folder: of all this, shared by all processes of all machines; the report is rot.json in it.
    every: seconds between two writes of hosts. What a killed process counted after its last is lost.
    """

    def __init__(self, *, folder: str, every: float = 5.0) -> None:
        self.folder, self.every = Path(folder), every
        self._lock, self._pid, self._reports = threading.Lock(), os.getpid(), False
        self._opened: set[Path] = set()  # files of outcomes
        self._begin()

    def _begin(self) -> None:
        self._counts: dict[Path, RotCounts] = {}  # of each file of outcomes
        self._written, self._changed = time.monotonic(), False
        self._name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.json"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "every": self.every}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(folder=str(state["folder"]), every=state["every"])  # type: ignore[misc]

    def outcomes(self, tables: str, rules: str) -> Outcomes:
        """Of the rows of some tables. With new rules for what is alive, their old ones are forgotten."""
        path = self.folder / "rows" / tables / rules
        self._opened.add(path)
        return Outcomes(path)

    def add(self, url: str, cause: str | None, *, before: str | None, rows: Path) -> None:
        """A URL's cause of death, None if it is alive, now and before; from any thread.

        rows: the file of its outcomes.
        """
        if cause == before:
            return
        with self._lock:
            if os.getpid() != self._pid:  # forked: what was counted before is the parent's
                self._pid = os.getpid()
                self._begin()
            counts = self._counts.setdefault(rows, RotCounts())
            if before is not None:
                counts.add_host(url, before, -1)
            if cause is not None:
                counts.add_host(url, cause)
            self._changed = True
        if time.monotonic() - self._written > self.every:
            self.flush()

    def flush(self) -> None:
        """Writes what this process has counted at hosts."""
        with self._lock:
            if not self._changed or os.getpid() != self._pid:
                return
            for rows, counts in self._counts.items():
                write_json(_hosts_folder(rows) / self._name, counts.as_dict())
            self._written, self._changed = time.monotonic(), False

    def total(self) -> RotCounts:
        """What all processes have written of the rows opened here, in this run and those that it resumes."""
        self.flush()
        counts = RotCounts()
        for rows in self._opened:
            for path in sorted(_hosts_folder(rows).glob("*.json")):
                counts.merge(json.loads(path.read_text()))
            alive, dead = count_outcomes(rows)
            counts.merge({"alive": alive, "dead": dead, "hosts": {}})
        counts.hosts = {host: dead for host, causes in counts.hosts.items() if (dead := +causes)}
        return counts

    def report_at_exit(self) -> None:
        """Lets this process write the report when it ends; a machine's first process prints it as well."""
        if not self._reports:
            self._reports = True
            atexit.register(self._report)

    def _report(self) -> None:
        if os.getpid() != self._pid:
            return
        try:
            counts = self.total()
            if not counts.alive and not counts.dead:
                return
            counts.write(self.folder / "rot.json")
        except (OSError, ValueError) as error:  # at its end a run is not stopped by a folder that is gone
            print(f"{self.folder / 'rot.json'} could not be written: {error}", flush=True)
            return
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{counts.summary()}; see {self.folder / 'rot.json'}", flush=True)


def _hosts_folder(rows: Path) -> Path:
    """Where processes write down at which hosts the rows of a file of outcomes died."""
    return rows.with_name(f"{rows.name}.hosts")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Atomically."""
    text = json.dumps(data, indent=2) + "\n"
    write_locked(path, lambda file: file.write(text.encode()))
