"""Trains in child processes that are killed again and again.

    python -m tests.drill KILLS SEED OVERRIDE... [-- OVERRIDE...]

This process has imported everything when it forks, so that a start costs no time. Half of the kills
come while a checkpoint is being written. Prints one line per kill, and the last child's exit code.
What stands behind -- is another run, which is not killed, with an exit code of its own.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import rfdit.train


def start(arguments: list[str]) -> int:
    """Forks a child that trains."""
    child = os.fork()
    if child == 0:
        sys.argv = ["train.py", *arguments]
        status = 1
        try:
            rfdit.train.main()
            status = 0
        except SystemExit as stopped:
            print(stopped.code, file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


def over(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] != 0


def unfinished(folder: Path) -> set[str]:
    """What is being written: a partial file, or a folder of shards without its last file."""
    partial = {file.name for file in folder.glob(".*.partial")}
    return partial | {file.name for file in folder.glob("*.shards") if not (file / "rest.pt").exists()}


def main(kills: int, seed: int, run_dir: Path, arguments: list[str]) -> None:
    moments = random.Random(seed)
    last = run_dir / "checkpoints" / "last.ckpt"
    for number in range(kills):
        resume = ["ckpt=last"] if last.exists() else []
        before = unfinished(last.parent)
        child = start([*arguments, *resume])
        written = last.resolve().stat().st_mtime_ns if last.exists() else 0
        while not over(child) and not (last.exists() and last.resolve().stat().st_mtime_ns > written):
            time.sleep(0.002)  # something must have been gained, or the run would never end
        while_writing = number % 2 == 1
        deadline = time.monotonic() + (20 if while_writing else moments.uniform(0, 0.5))
        while time.monotonic() < deadline and not (while_writing and unfinished(last.parent) - before):
            pass
        caught = bool(unfinished(last.parent) - before)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("killed", "while writing" if caught else "between writes", flush=True)
    child = start([*arguments, *(["ckpt=last"] if last.exists() else [])])
    print("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    given = sys.argv[3:]
    end = given.index("--") if "--" in given else len(given)
    for kills, arguments in ((int(sys.argv[1]), given[:end]), (0, given[end + 1 :])):
        if arguments:
            main(kills, int(sys.argv[2]), Path(arguments[0].removeprefix("run_dir=")), arguments)
