"""Memory that a step frees and the next one needs again."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed instead of returning it to the system; True if it is glibc.

    A training step on a CPU frees and takes the same blocks every time; by default each large one
    goes back to the system and comes in again page by page, which is 10 to 20% of a step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
