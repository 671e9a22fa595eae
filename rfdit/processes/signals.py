"""Ctrl-C and SIGTERM, held back where they must not come in the middle of something."""

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal for a process whose parent has died
SECONDS_AFTER_SIGTERM = 120  # for which a DataLoader worker outlives a SIGTERM


class Stopped(BaseException):
    """The work was ended by a signal, whose number is the argument."""


class StopSignal:
    """Ends the work by raising Stopped: at once or, inside `deferred`, at the next `check`.

    An exception from a signal handler can come anywhere, and is lost where DataLoader workers are
    forked. A second signal is not deferred.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._received: int | None = None

    def install(self) -> None:
        """Handle SIGINT and SIGTERM from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Context in which a signal waits for the next `check`, at the latest for the end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def check(self) -> None:
        """Raises Stopped if a signal was received."""
        if self._received is not None:
            raise Stopped(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._deferring and self._received is None:
            self._received = number
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the remaining work is short
        raise Stopped(number)


def die_with_parent() -> None:
    """Let Linux kill this process when its parent ends; elsewhere without effect."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def hold_back_interrupt() -> Iterator[None]:
    """Context in which Ctrl-C waits for the end, and from which started processes never get it.

    The mask is what they inherit. It is not enough for this process: a SIGINT may reach another of its
    threads, and Python would raise KeyboardInterrupt here all the same.
    """
    received: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, frame: received.append(number)) if in_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGINT, handler)
    if received:
        signal.raise_signal(signal.SIGINT)


def outlive_signals(worker: int) -> None:
    """Let a DataLoader worker live until its parent ends; for `worker_init_fn`.

    Ctrl-C, and often SIGTERM and SIGUSR1, reach the whole process group. A worker that died from them would raise an
    error in its parent before the parent could finish, for example write a checkpoint. After a SIGTERM the
    worker ends itself after a while; if the parent is killed outright, the worker is killed too.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM))
