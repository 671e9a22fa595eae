"""Programs as forks of a process that has imported everything, so that their start costs no time.

    python -m tests.support.commands.forks

serves the runs of several ranks: a process that has trained before must not be forked for them, since threads of
torch.distributed may hold locks that no thread of the fork would ever release.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from unittest.mock import Mock, patch

import rfdit.commands.train
from rfdit.__main__ import main

ROOT = Path(__file__).parents[3]


def fork(program: Callable[[], object]) -> int:
    """A child that runs a program to its end, with its exit code; returns the child's number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        program()
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class ForkedRank:
    """Another rank of this process's run, with what `rfdit.processes.launch` uses of `subprocess.Popen`.

    It is forked before the run begins, so that it has nothing of it, and waits for its command.
    """

    def __init__(self) -> None:
        waiting, self._command = os.pipe()
        self._code: int | None = None

        def program() -> None:
            atexit._clear()  # what is to be done at the end of the process that it is a fork of
            os.close(self._command)
            with open(waiting) as pipe:
                if not (received := pipe.readline()):
                    return  # the run ended before its ranks were started
            command, environment = json.loads(received)
            os.environ.clear()
            os.environ.update(environment)
            assert command[:3] == [sys.executable, "-m", "rfdit"]
            sys.argv = command[2:]
            main()

        self.pid = fork(program)
        os.close(waiting)

    def start(self, command: Sequence[str], *, env: Mapping[str, str]) -> "ForkedRank":
        """Let it begin."""
        with open(self._command, "w") as pipe:
            pipe.write(json.dumps([list(command), dict(env)]) + "\n")
        return self

    def forget(self) -> None:
        """End it if it has not begun; otherwise it has ended with the run."""
        if self.poll() is None:
            os.close(self._command)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def poll(self) -> int | None:
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


@contextmanager
def forked_ranks(arguments: Sequence[str], *, runs: int = 1) -> Iterator[None]:
    """A context in which the other ranks are forks of this process. arguments: of so many runs, with their devices."""
    devices = [int(a.removeprefix("trainer.devices=")) for a in arguments if a.startswith("trainer.devices=")]
    ranks = [ForkedRank() for _ in range(runs * (devices[-1] - 1 if devices else 0))]
    waiting = iter(ranks)

    def started(command: Sequence[str], *, env: Mapping[str, str]) -> ForkedRank:
        return next(waiting).start(command, env=env)

    try:
        with patch("rfdit.processes.launch.subprocess", Mock(Popen=started)):
            yield
    finally:
        for rank in reversed(ranks):  # a later one holds the pipes of those before it
            rank.forget()


@cache
def _server() -> "subprocess.Popen[str]":
    """The process that serves this one, which ends with it."""
    command = [sys.executable, "-m", "tests.support.commands.forks"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def train_on_ranks(*arguments: str, runs: int = 1) -> None:
    """Train as `train.py` with these arguments does, so many runs of several ranks, in forks of another process."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    request = {"arguments": arguments, "runs": runs, "folder": os.getcwd(), "environment": dict(os.environ)}
    print(json.dumps(request), file=server.stdin, flush=True)
    code, output = json.loads(server.stdout.readline())
    assert code == 0, output[-3000:]


def serve() -> None:
    """Train what standard input asks for, a line per command; the answer is its exit code and all that it printed."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        with TemporaryFile("w+") as output:

            def program(request: dict[str, Any] = request, output: IO[str] = output) -> None:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                for number in (1, 2):
                    os.dup2(output.fileno(), number)
                os.chdir(request["folder"])
                os.environ.clear()
                os.environ.update(request["environment"])
                sys.argv = ["train.py", *request["arguments"]]
                with forked_ranks(request["arguments"], runs=request["runs"]):
                    rfdit.commands.train.main()

            _, status = os.waitpid(fork(program), 0)
            output.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), output.read()]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
