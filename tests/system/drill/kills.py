"""Kills of one command after the other, at random moments, after which the same command is started again."""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from rfdit.__main__ import run
from rfdit.storage.atomic import remove_abandoned
from tests.support.commands.forks import fork
from tests.system.drill.kind import digest_files

SECONDS = 300.0  # that a command of moments may take on any machine
INTERRUPTS = 0.2  # share of the kills that are Ctrl-C instead of SIGKILL
LONG_AGO = 3600.0  # seconds by which unfinished files are made older, since only old ones are removed
# What no two starts have in common, or is of a lock's holder.
APART = ("environment.jsonl", "log", "log.txt", "overrides.txt", "config.yaml", "finished.json", "README.md")


def files_of(*patterns: str) -> dict[str, str]:
    """The digests of files; locks are left out, and indexes of shards, which have a time of change in them."""
    found = digest_files(*patterns, without=APART)
    return {path: each for path, each in found.items() if not path.endswith((".idx", ".lock"))}


@dataclass(frozen=True)
class Work:
    """A command, in an empty working directory.

    make: writes what it needs. arguments: its own. resume: those that it is started again with, if others; None if
        it has finished, and is not to be started again.
    result: what it ends with, as plain data; all files by default.
    whole: patterns of files that have their final contents as soon as they have their names.
    """

    name: str
    command: str
    make: Callable[[], None]
    arguments: Sequence[str]
    resume: Callable[[], Sequence[str] | None] | None = None
    result: Callable[[], Any] = lambda: files_of("out*/**/*", "out*")
    whole: Sequence[str] = ("out*/**/*", "out*")
    weight: float = 1.0


@dataclass(frozen=True)
class Kill:
    """One kill and its outcome. signal: its name. seconds: the moment."""

    work: str
    number: int
    signal: str
    seconds: float
    outcome: str = "same"
    detail: str = ""

    @property
    def is_fault(self) -> bool:
        return self.outcome != "same"


class Range:
    """The place of one command's kills. folder: an empty one."""

    def __init__(self, work: Work, folder: Path, *, seed: int) -> None:
        self.work, self.folder, self.start_folder = work, folder / "work", folder / "start"
        self.log = folder / "log"
        self.seed = seed

    def prepare(self) -> None:
        """Make what the command needs, and run it once without a kill."""
        self.folder.mkdir(parents=True)
        self._finish(self._fork(self.work.make))
        self.folder.rename(self.start_folder)
        self._restore()
        self.seconds = self._complete(self.work.arguments)
        with contextlib.chdir(self.folder):
            self.result, self.whole = self.work.result(), files_of(*self.work.whole)
            self.names = self._names()

    def round(self, number: int, kills: int) -> Iterator[Kill]:
        """Kill one run of the command so often, then let it end: the last kill has the outcome of all."""
        draw = Random(f"{self.seed} {self.work.name} {number}")
        self._restore()
        done: list[Kill] = []
        for k in range(kills):
            moment = draw.uniform(0, self.seconds)
            interrupt = draw.random() < INTERRUPTS
            if (arguments := self.arguments()) is None:
                break
            child = self._fork(lambda arguments=arguments: self._command(arguments))
            time.sleep(moment)
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self.seconds *= 0.9  # it had ended, faster than before
                self._wait(child)
                break
            os.kill(child, signal.SIGINT if interrupt else signal.SIGKILL)
            name = "SIGINT" if interrupt else "SIGKILL"
            status = self._wait(child)
            found = Kill(self.work.name, number + k, name, round(moment, 3), *self._after(name, status))
            if found.is_fault:
                yield found
                return
            done.append(found)
        if not done:
            return
        *before, last = done
        yield from before
        yield replace(last, **dict(zip(("outcome", "detail"), self._ended())))

    def arguments(self) -> Sequence[str] | None:
        with contextlib.chdir(self.folder):
            return self.work.resume() if self.work.resume else self.work.arguments

    def _after(self, name: str, status: int | None) -> tuple[str, str]:
        """The outcome as far as what the kill left tells."""
        log = self.log.read_text(errors="replace")
        if status is None:
            return "hang", log[-1500:]
        if "Traceback" in log:
            return "traceback", log[-1500:]
        if name == "SIGINT" and os.waitstatus_to_exitcode(status) not in (130, 0):
            return "other exit code", f"{os.waitstatus_to_exitcode(status)}: {log[-500:]}"
        with contextlib.chdir(self.folder):
            left = files_of(*self.work.whole)
        hidden = {path for path in left if Path(path).name.startswith(".") or "/." in f"/{path}"}
        if wrong := [
            path for path in left if path not in hidden and left[path] != self.whole.get(path, left[path])
        ]:
            return "not whole under its name", wrong[0]
        return "same", ""

    def _ended(self) -> tuple[str, str]:
        """The outcome once the command has been started again."""
        for path in self.folder.rglob(".*"):
            with contextlib.suppress(OSError):
                os.utime(path, (time.time() - LONG_AGO,) * 2)
        try:
            if (arguments := self.arguments()) is not None:
                self._complete(arguments)
            else:  # it is whole already, and the next command that writes beside it tidies up
                remove_abandoned(self.folder)
        except RuntimeError as error:
            return "does not go on", str(error)
        with contextlib.chdir(self.folder):
            result, names = self.work.result(), self._names()
        if result != self.result:
            return "another result", _difference(result, self.result)
        if more := names - self.names:
            return "left over", ", ".join(sorted(more))
        return "same", ""

    def _names(self) -> set[str]:
        """All files but those of the cache, and of the parts of checkpoints, whose names are random."""
        found = (path for path in Path().rglob("*") if not path.is_dir() and path.parts[0] != "cache")
        return {str(path) for path in found if ".shards" not in str(path)}

    def _restore(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.start_folder, self.folder, symlinks=True)

    def _complete(self, arguments: Sequence[str]) -> float:
        begun = time.monotonic()
        self._finish(self._fork(lambda: self._command(arguments)))
        return time.monotonic() - begun

    def _command(self, arguments: Sequence[str]) -> None:
        sys.argv = [f"rfdit {self.work.command}", *arguments]
        run(self.work.command)

    def _fork(self, function: Callable[[], Any]) -> int:
        """A child, in the folder and a process group of its own, which writes to the log."""

        def program() -> None:
            os.setpgid(0, 0)
            os.chdir(self.folder)
            os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            function()

        return fork(program)

    def _wait(self, child: int) -> int | None:
        """The child's status; None if it does not end. Its workers are left to themselves for a moment."""
        limit = time.monotonic() + SECONDS
        while time.monotonic() < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _finish(self, child: int) -> None:
        status = self._wait(child)
        if status != 0:
            raise RuntimeError(f"status {status}: {self.log.read_text(errors='replace')[-1500:]}")


def _difference(found: Any, expected: Any) -> str:
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return ", ".join(
            sorted(str(k) for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
        )[:500]
    return f"{str(found)[:300]} instead of {str(expected)[:300]}"


def kill(work: Work, folder: Path, *, seed: int, count: int) -> Iterator[Kill]:
    """So many kills of a command, up to four in each of its runs."""
    place = Range(work, folder, seed=seed)
    place.prepare()
    draw, number, done = Random(f"{seed} {work.name}"), 0, 0
    while done < count:
        kills = min(draw.choice([1, 2, 3, 4]), count - done)
        for found in place.round(number, kills):
            done += 1
            yield found
        number += kills
