"""Waits for events, with limits that only a hang exceeds."""

import subprocess
import time
from collections.abc import Callable

SECONDS = 300.0


def wait_until(happened: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    """Return as soon as `happened()` is true; fail if `process` ends before that, or if it never is."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        if process is not None and process.poll() is not None:
            assert happened(), process.communicate()
            return
        assert time.monotonic() < deadline, f"still waiting after {SECONDS:.0f} s"
        time.sleep(0.005)
