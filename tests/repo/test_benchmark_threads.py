"""The benchmark of waiting threads runs, each way in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

import rfdit

BENCHMARK = Path(rfdit.__file__).parents[1] / "benchmarks" / "waiting_threads.py"
SMALL = ["--patch", "16", "--batch", "1", "--repeats", "1", "--warmup", "0", "--busy", "1"]


@pytest.mark.slow
def test_it_compares() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARK), *SMALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "beside 1 busy process\n" in done.stdout
    assert done.stdout.count(" ms\n") == 4
