"""The waiting of OpenMP's threads for each other. Imports nothing heavy, since it must come before torch."""

import os

# PyTorch's wheels bring libgomp for Linux, and LLVM's OpenMP for macOS. By default their threads spin for some
# 3 and 200 milliseconds before they sleep, and keep a thread that has work to do from the core that it needs
# if anything else runs there. For libgomp a count overrules the policy: it spins for about as long as waking
# a thread takes, so that neighbours lose little to it and threads that are done at about the same time do not
# sleep. LLVM's counts milliseconds. See benchmarks/waiting_threads.py.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
# Any of these that a user has set stands, and nothing is changed.
OWN = (*WAITING, "KMP_LIBRARY")


def wait_briefly() -> None:
    """Let the threads of this process, and of those that it starts, sleep after a short wait.

    OpenMP reads this when it is loaded, with torch. A setting of the user's own is left alone.
    """
    if not any(name in os.environ for name in OWN):
        os.environ.update(WAITING)
