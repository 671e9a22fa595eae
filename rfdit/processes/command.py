"""A shell command whose output is read, and which ends with its reader."""

import contextlib
import errno
import os
import select
import signal
import subprocess
from collections.abc import Iterator

from rfdit.processes.signals import hold_back_interrupt


class CommandOutput:
    """The output of a running command, to be read once from begin to end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._file = process.stdout.fileno()

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end. Waits in a way that Ctrl-C ends, as `result_of`."""
        while not select.select([self._file], [], [], 1)[0]:
            pass
        return os.read(self._file, size)


@contextlib.contextmanager
def output_of(command: str) -> Iterator[CommandOutput]:
    """Context with the output of a shell command.

    The command has a process group of its own, all of which is killed if the block raises. Left to itself,
    it could miss a Ctrl-C: a process that is just being started may do so.
    Raises OSError at the end if the command fails.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with hold_back_interrupt():
            process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, process_group=0)
        yield CommandOutput(process)
    except BaseException:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _end(process)
        raise
    if (status := _end(process)) != 0:
        raise OSError(errno.EIO, f"the command ends with status {status}")


def _end(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    process.stdout.close()
    return process.wait()
