"""Ctrl-C as the end of a program: one line, no traceback, exit code 130."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rfdit.processes.environment import rank_of_environment

EXIT_CODE = 128 + signal.SIGINT


class Interrupt:
    """The handler of SIGINT in a program: ends it at once, or after `raises` by KeyboardInterrupt.

    An import may turn an exception that comes in its middle into another one, or ignore it. There is nothing
    to tidy up yet, and later only a second signal ends the program at once.
    """

    def __init__(self) -> None:
        self.received = False
        self._raises = False
        self._process = os.getpid()

    def raises(self) -> None:
        """Raise KeyboardInterrupt from now on."""
        self._raises = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, just forked, that has no handler of its own yet
            os._exit(EXIT_CODE)
        if self.received or not self._raises:
            report()
            os._exit(EXIT_CODE)
        self.received = True
        raise KeyboardInterrupt


@contextmanager
def ended_by_interrupt() -> Iterator[Interrupt]:
    """Context that SIGINT ends with one line and exit code 130, whatever exception comes of it inside.

    It does so in the background of a shell too, which lets its commands ignore SIGINT: who sends one there
    means this program. A SystemExit of that code has printed a line of its own.
    """
    interrupt = Interrupt()
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    except BaseException as error:
        ended = isinstance(error, SystemExit) and error.code == EXIT_CODE
        if ended or not (interrupt.received or isinstance(error, KeyboardInterrupt)):
            raise
        report()
        raise SystemExit(EXIT_CODE) from None


def report() -> None:
    """Print the line; of several ranks the first one does. A signal may have come in the middle of a print."""
    if rank_of_environment() == 0:
        os.write(2, b"stopped by SIGINT\n")
