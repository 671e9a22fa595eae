"""Programs as forks of a process that has imported everything, so that their start costs no time."""

import os
import sys
import traceback
from collections.abc import Callable


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
