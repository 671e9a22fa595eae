"""Ctrl-C and SIGTERM, which must not come in the middle of something."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal, whose number is the argument, has ended the work."""


class StopSignal:
    """Ends the work by raising Stopped: at once, or, while it is `deferred`, at the next `check`.

    An exception from a signal handler may come anywhere, and where DataLoader workers are forked it is
    lost. A second signal is not deferred.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._received: int | None = None

    def install(self) -> None:
        """From now on both signals come here."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While this lasts, `check` has to be called now and then."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def check(self) -> None:
        """Raises Stopped if a signal has come."""
        if self._received is not None:
            raise Stopped(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._deferring and self._received is None:
            self._received = number
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left to do is soon done
        raise Stopped(number)
