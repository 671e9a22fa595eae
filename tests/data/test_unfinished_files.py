"""Whole files or none, and who may remove an unfinished one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

import rfdit
from rfdit.data.unfinished_files import remove_abandoned, write_locked

# Writes half a file, has a child that outlives it as DataLoader workers may, and waits.
WRITER = """
import os, sys, time
from pathlib import Path
from rfdit.data.unfinished_files import write_locked

def write(file):
    file.write(b"half")
    file.flush()
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)

write_locked(Path(sys.argv[1]), write)
"""


@contextmanager
def writer(target: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that is in the middle of writing a file."""
    root = Path(rfdit.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.communicate(timeout=30)


def test_the_file_is_whole_when_it_is_there(tmp_path: Path) -> None:
    target = tmp_path / "new/a.tar"

    def write(file: BinaryIO) -> None:
        file.write(b"whole")
        assert not target.exists()

    write_locked(target, write)
    assert target.read_bytes() == b"whole"
    assert os.listdir(target.parent) == ["a.tar"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"before")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_locked(tmp_path / "a.tar", fail)
    assert os.listdir(tmp_path) == ["a.tar"]
    assert (tmp_path / "a.tar").read_bytes() == b"before"


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "b.tar").touch()
    with writer(tmp_path / "a.tar") as process:
        (partial,) = tmp_path.glob(".*")
        os.utime(partial, ns=(0, 0))
        assert remove_abandoned(tmp_path) == 0  # it is locked
        process.kill()
        process.wait(timeout=30)
        os.utime(partial)
        assert remove_abandoned(tmp_path) == 0  # it has no lock, as one of another machine may seem to
        assert partial.exists()
        an_hour_ago = time.time() - 3600
        os.utime(partial, (an_hour_ago, an_hour_ago))
        assert remove_abandoned(tmp_path) == 1
        assert os.listdir(tmp_path) == ["b.tar"]
