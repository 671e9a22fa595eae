"""Waits that Ctrl-C ends, even if another thread receives it."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from rfdit.processes.command import output_of
from rfdit.processes.pools import result_of
from tests.support.waiting import wait_until


def interrupt_in_another_thread(when: Callable[[], bool]) -> None:
    """Let a thread receive Ctrl-C, which does not wake the main thread from a system call."""

    def receive() -> None:
        while not when():
            time.sleep(0.01)
        time.sleep(0.1)  # by now the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    threading.Thread(target=receive).start()


def test_a_result() -> None:
    interrupt_in_another_thread(lambda: True)
    with pytest.raises(KeyboardInterrupt):
        result_of(Future())


def test_a_command_which_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    interrupt_in_another_thread(pids.exists)
    with pytest.raises(KeyboardInterrupt), output_of(f"sleep 1000 & echo $$ $! > {pids}; wait") as output:
        output.read(1)
    for pid in pids.read_text().split():
        wait_until(lambda pid=pid: ended(pid))


def ended(pid: str) -> bool:
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()  # its parent has not asked for its status yet
    except OSError:
        return True


def test_a_command_that_fails_says_so_at_its_end() -> None:
    with (
        pytest.raises(OSError, match="the command ends with status 3"),
        output_of("echo text; exit 3") as output,
    ):
        assert output.read(100) == b"text\n"
