"""The benchmark of two processes runs, and says so when one of them has ended."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rfdit

BENCHMARK = Path(rfdit.__file__).parents[1] / "benchmarks" / "train_apart.py"
SMALL = ["--size", "s", "--patch", "16", "--batch", "1", "--repeats", "1", "--warmup", "0"]


def run(**variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *SMALL], env=os.environ | variables, capture_output=True, text=True
    )


@pytest.mark.slow
def test_it_compares() -> None:
    done = run()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "S/16 batch 1 bf16" in done.stdout
    assert done.stdout.count("MFU") == 2
    assert "ratio" in done.stdout


@pytest.mark.slow
def test_it_ends_when_one_has_ended(tmp_path: Path) -> None:
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers/__init__.py").write_text("raise SystemExit('no diffusers here')\n")
    done = run(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "error: the process of diffusers has ended" in done.stderr
