"""Trains in child processes that are killed again and again.

    python -m tests.support.training.drill AIM,AIM... SEED OVERRIDE... [-- OVERRIDE...]

This process has imported everything when it forks, so that a start costs no time. An AIM is `starting`,
for a kill before the child has begun to write a checkpoint; `writing:N`, while it writes its N-th; or
`between:N`, after that. The moment within is random. A kill that comes too late for its aim is one more,
and another child is aimed at. Prints one line per kill, and the last child's exit code.
The overrides after -- are those of another run, which is not killed, with an exit code of its own.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rfdit.commands.train
from tests.support.commands.forks import fork, forked_ranks

TRIES = 8  # per aim
PAUSE = 0.05  # seconds before a file gets its name, so that a busy machine lets this process see the write


def start(arguments: list[str]) -> int:
    """Forks a child that trains."""

    def replace(source: Any, target: Any, replaced: Callable[[Any, Any], None] = os.replace) -> None:
        time.sleep(PAUSE)
        replaced(source, target)

    def program() -> None:
        os.replace = replace  # type: ignore[assignment]
        sys.argv = ["train.py", *arguments]
        with forked_ranks(arguments):
            rfdit.commands.train.main()

    return fork(program)


class Drill:
    """Kills of one run. The random moments are fractions of what children before took to start and to write."""

    def __init__(self, *, arguments: list[str], seed: int) -> None:
        self.arguments = arguments
        self.folder = Path(arguments[0].removeprefix("run_dir=")) / "checkpoints"
        self.moments = random.Random(seed)
        self.start_seconds, self.write_seconds = 1.0, 0.002

    def next_child(self) -> int:
        """Goes on from the last checkpoint, if there is one."""
        return start([*self.arguments, *(["ckpt=last"] if self.saved() else [])])

    def saved(self) -> int | None:
        """The time at which the last checkpoint was written."""
        try:
            return (self.folder / "last.ckpt").resolve(strict=True).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def unfinished(self) -> set[str]:
        """The file being written: a partial file, or a folder of shards without its last file."""
        partial = {file.name for file in self.folder.glob(".*.partial")}
        shards = self.folder.glob("*.shards")
        return partial | {file.name for file in shards if not (file / "rest.pt").exists()}

    def kill_one(self, aim: str) -> str:
        """The work of a child that was killed as `aim` says: starting, writing or between."""
        kind, _, number = aim.partition(":")
        saved, left = self.saved(), self.unfinished()
        child = self.next_child()
        self.wait(child, kind, int(number or 1), left)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if self.unfinished() - left:
            return "writing"  # as what it left proves
        return "starting" if self.saved() == saved else "between"

    def hurry(self, aim: str) -> None:
        """After a miss: what was measured may have been a moment in which the machine was busy."""
        if aim == "starting":
            self.start_seconds /= 2
        else:
            self.write_seconds /= 2

    def wait(self, child: int, kind: str, number: int, left: set[str]) -> None:
        """Returns at a random moment of those that are aimed at. left: by killed writers before."""
        begun = time.monotonic()
        limit = begun + self.moments.uniform(0, self.start_seconds) if kind == "starting" else None
        for nth in range(number):
            if not self.wait_for(child, left, writing=True, limit=limit) or limit is not None:
                return
            now = time.monotonic()
            if nth == 0:
                self.start_seconds = now - begun
            if kind == "between" or nth < number - 1:
                self.wait_for(child, left, writing=False)
                self.write_seconds = time.monotonic() - now
        limit = time.monotonic() + self.moments.uniform(0, self.write_seconds)
        while time.monotonic() < limit:
            pass

    def wait_for(self, child: int, left: set[str], *, writing: bool, limit: float | None = None) -> bool:
        """True if a write began, or ended, before the limit."""
        while bool(self.unfinished() - left) != writing:
            if limit is not None and time.monotonic() > limit:
                return False
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise SystemExit("a child ended before it was killed")
        return True


def main(aims: list[str], seed: int, arguments: list[str]) -> None:
    drill = Drill(arguments=arguments, seed=seed)
    for aim in aims:
        for _ in range(TRIES):
            found = drill.kill_one(aim)
            if hit := found == aim.partition(":")[0]:
                break
            drill.hurry(aim)
            print("missed", aim, "and killed", found, flush=True)
        if not hit:
            raise SystemExit(f"{aim} was missed {TRIES} times")
        print("killed", found, flush=True)
    child = drill.next_child()
    print("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    given = sys.argv[3:]
    if any(argument.startswith("adapter=") for argument in given):
        import peft  # noqa: F401
    end = given.index("--") if "--" in given else len(given)
    for aims, arguments in ((sys.argv[1].split(","), given[:end]), ([], given[end + 1 :])):
        if arguments:
            main(aims, int(sys.argv[2]), arguments)
