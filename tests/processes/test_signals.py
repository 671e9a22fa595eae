"""Ctrl-C where it must wait."""

import signal
import subprocess
import sys
import threading

import pytest

from rfdit.processes.signals import hold_back_interrupt


def test_ctrl_c_waits_for_the_end_whichever_thread_receives_it() -> None:
    steps = []

    def start_processes() -> None:
        with hold_back_interrupt():
            other = threading.Thread(target=signal.raise_signal, args=[signal.SIGINT])
            other.start()
            other.join()
            signal.raise_signal(signal.SIGINT)
            steps.append("started")
        steps.append("went on")

    with pytest.raises(KeyboardInterrupt):
        start_processes()
    assert steps == ["started"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_started_processes_never_get_it() -> None:
    masked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with hold_back_interrupt():
        started = subprocess.run([sys.executable, "-c", masked], capture_output=True, text=True)
    assert started.stdout == "True\n"
    with hold_back_interrupt():
        pass  # nothing came, nothing is raised
