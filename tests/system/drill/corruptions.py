"""Corruptions of one kind of file after the other, each read in a process that is watched, and judged."""

import contextlib
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.support.commands.forks import fork
from tests.system.drill.kind import Kind, Samples
from tests.system.drill.mutations import ALL, GONE, SHORTER, damage_file

SECONDS = 180.0  # that a read of a few kilobytes may take on any machine
MEMORY = 8 << 30  # bytes that it may take beyond those of this process
OUTCOMES = ("harmless", "told", "counted", "other")
UNREADABLE = 3  # exit code of a child that cannot read the files while they are whole
FAULTS = ("another number in silence", "traceback", "file not named", "hang", "process died")


@dataclass(frozen=True)
class Corruption:
    """One corruption and its outcome. detail: the sentence, or the error."""

    kind: str
    number: int
    file: str
    damage: str
    outcome: str
    detail: str = ""

    @property
    def is_fault(self) -> bool:
        return self.outcome in FAULTS


class Workshop:
    """The files of one kind, made once, and damaged again and again at the same place.

    folder: an empty one.
    """

    def __init__(self, kind: Kind, folder: Path, *, seed: int) -> None:
        self.kind, self.folder, self.seed = kind, folder / "work", seed
        self.whole_files = folder / "whole"
        self.log = folder / "log"
        self.blind = False  # True if nobody can notice that samples are gone

    def make(self) -> None:
        """Make the files, in a process of its own, whose threads and process groups are gone afterwards."""
        self.folder.mkdir(parents=True)

        def make() -> None:
            with self._inside():
                self.kind.make()

        child = fork(make)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"the files of the kind {self.kind.name} could not be made")
        with self._inside():
            self.files = [str(path) for path in self.kind.files()]
        assert self.files, f"{self.kind.name}: nothing matches {self.kind.targets}"
        # Renamed, so that all times of change are those that were recorded.
        self.folder.rename(self.whole_files)

    def read_whole(self) -> None:
        """What comes of the files while they are whole."""
        self.restore()
        with self._inside():
            self.whole = self.kind.read()

    def restore(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.whole_files, self.folder, symlinks=True)

    def corrupt(self, number: int) -> Corruption:
        """One corruption, a function of the seed, the kind and its number alone."""
        draw = Random(f"{self.seed} {self.kind.name} {number}")
        self.restore()
        with self._inside():
            name = draw.choice(self.files)
            forge = next((f for pattern, f in self.kind.forge.items() if Path(name).match(pattern)), None)
            damage = "forged" if forge and draw.random() < 0.4 else draw.choice(ALL)
            if damage == "forged":
                assert forge is not None
                forge(Path(name), draw)
            else:
                damage_file(Path(name), damage, draw)
            log, theirs = (
                any(Path(name).match(pattern) for pattern in patterns)
                for patterns in (self.kind.logs, self.kind.open)
            )
            known = damage not in ("forged", *GONE, *(SHORTER if log else ()), *(["swap"] if theirs else []))
            self.blind = damage in self.kind.blind
            outcome, detail = self._judge(str(Path(name, self.kind.alias)), known=known)
        return Corruption(self.kind.name, number, name, damage, outcome, detail)

    def _judge(self, name: str, *, known: bool) -> tuple[str, str]:
        """known: the file is still there, so that its reader can know that it is not what it was."""
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                found = self.kind.read()
            except (ValueError, OSError, SystemExit) as error:
                if self.kind.foreign:
                    return "told", str(error)
                return _told(error, name)
            except BaseException as error:
                if self.kind.foreign and isinstance(error, Exception):
                    return "told", str(error)
                return "traceback", "".join(traceback.format_exception(error)[-3:])
        sentences = [str(warning.message) for warning in warned]
        outcome = self._compared(found, known=known)
        if outcome == "another number in silence" and (said := [s for s in sentences if _names(s, name)]):
            return "told", said[0]
        return outcome, ""

    def _compared(self, found: Any, *, known: bool) -> str:
        if found == self.whole:
            return "harmless"
        if isinstance(found, Samples):
            whole = self.whole.values
            missing = whole.keys() - found.values.keys()
            if missing and known and not self.blind and not sum(found.skipped.values()):
                return "another number in silence"
            if all(whole.get(key) == value for key, value in found.values.items()):
                return "counted"
        return "another number in silence" if known and self.kind.guarded else "other"

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """In the folder, with a cache in it; what is printed goes to the log."""
        before, cache = os.getcwd(), os.environ.get("XDG_CACHE_HOME")
        os.chdir(self.folder)
        os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            os.chdir(before)
            os.environ.pop("XDG_CACHE_HOME")
            if cache is not None:
                os.environ["XDG_CACHE_HOME"] = cache


def _told(error: BaseException, name: str) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, SystemExit):
        if not text.startswith("error: "):
            return "traceback", f"SystemExit {text}"
        text = text.removeprefix("error: ")
        if "\n" in text:
            return "traceback", f"more than a line: {text}"
    return ("told", text) if _names(text, name) else ("file not named", text)


def _names(text: str, name: str) -> bool:
    """True for a sentence with the name of a file, or of the folder that a setting named."""
    return any(re.search(rf"(?<![\w.-]){re.escape(part)}(?![\w-])", text) for part in Path(name).parts)


def corrupt(kind: Kind, folder: Path, *, seed: int, numbers: Sequence[int]) -> Iterator[Corruption]:
    """The corruptions of these numbers, in processes of which another begins where one hangs or dies."""
    if not numbers:
        return
    shop = Workshop(kind, folder, seed=seed)
    shop.make()
    todo = list(numbers)
    while todo:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(shop, todo, writer)
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            for line in _lines(pipe):
                yield Corruption(**json.loads(line))
                del todo[0]
            hung = bool(todo) and not _ended(pipe)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == UNREADABLE:
            raise RuntimeError(
                f"whole files of the kind {kind.name} cannot be read: {shop.log.read_text()[-1500:]}"
            )
        if todo:
            outcome = "hang" if hung else "process died"
            log = shop.log.read_text(errors="replace")[-1500:]
            yield Corruption(kind.name, todo.pop(0), "", "", outcome, f"status {status}: {log}")


def _ended(pipe: Any) -> bool:
    """True if the pipe has no writer any more."""
    return bool(select.select([pipe], [], [], 0)[0])


def _lines(pipe: Any) -> Iterator[bytes]:
    """The lines of a pipe, until it ends or nothing comes for too long."""
    data = b""
    while select.select([pipe], [], [], SECONDS)[0]:
        if not (new := os.read(pipe.fileno(), 1 << 16)):
            return
        *whole, data = (data + new).split(b"\n")
        yield from whole


def _work(shop: Workshop, todo: Sequence[int], pipe: int) -> None:
    """In a child: one line for each corruption."""
    try:
        os.setpgid(0, 0)
        log = os.open(shop.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        try:
            shop.read_whole()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(UNREADABLE)
        for number in todo:
            found = shop.corrupt(number)
            os.write(pipe, json.dumps(vars(found)).encode() + b"\n")
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)
