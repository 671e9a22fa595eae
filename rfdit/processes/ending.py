"""The end of a process that has been one of several ranks."""

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator

joined = threading.Event()  # set by what makes this process one of several ranks


@contextlib.contextmanager
def ended_as_rank() -> Iterator[None]:
    """Context of a program, which ends the process without Python's own tidying up if it was one of several ranks.

    Threads of torch.distributed release the tensors of the last collectives some time after it has returned, and
    take the interpreter's lock for that. Once Python has begun to tidy up this aborts the process (SIGABRT), so
    that a run which has succeeded, or was stopped in an orderly way, would count as one that has crashed. What is
    registered with `atexit` runs, threads that are no daemons are waited for, and the exit code stays.
    """
    joined.clear()
    try:
        yield
        code = 0
    except BaseException as error:
        if not joined.is_set():
            raise
        code = _exit_code(error)
    if joined.is_set():
        threading._shutdown()  # type: ignore[attr-defined]  # as Python does, in this order
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed
                stream.flush()
        os._exit(code)


def _exit_code(error: BaseException) -> int:
    """The exit code that Python gives to an error, which is printed as Python would print it."""
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1
