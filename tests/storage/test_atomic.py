"""Whole files or none, and the removal of unfinished ones."""

import errno
import os
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest
from safetensors import SafetensorError

from rfdit.storage import atomic
from rfdit.storage.atomic import remove_abandoned, write_atomically, write_folder_atomically
from tests.support.commands.processes import process_with_child

# Writes half a file, has a child that outlives it as DataLoader workers may, and waits.
WRITER = """
import os, sys, time
from pathlib import Path
from rfdit.storage.atomic import write_atomically

def write(file):
    file.write(b"half")
    file.flush()
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)

write_atomically(Path(sys.argv[1]), write, durable=True)
"""


def writer(target: Path) -> AbstractContextManager["subprocess.Popen[str]"]:
    """A process that is in the middle of writing a file."""
    return process_with_child(WRITER, str(target))


def test_the_file_is_whole_when_it_is_there(tmp_path: Path) -> None:
    target = tmp_path / "new/a.tar"

    def write(file: BinaryIO) -> None:
        file.write(b"whole")
        assert not target.exists()

    write_atomically(target, write, durable=True)
    assert target.read_bytes() == b"whole"
    assert os.listdir(target.parent) == ["a.tar"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"before")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.tar", fail, durable=True)
    assert os.listdir(tmp_path) == ["a.tar"]
    assert (tmp_path / "a.tar").read_bytes() == b"before"


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "b.tar").touch()
    with writer(tmp_path / "a.tar") as process:
        (partial,) = tmp_path.glob(".*")
        os.utime(partial, ns=(0, 0))
        assert remove_abandoned(tmp_path) == 0  # it is locked
        process.kill()
        process.wait(timeout=120)
        os.utime(partial)
        assert remove_abandoned(tmp_path) == 0  # it has no lock, as one of another machine may seem to
        assert partial.exists()
        an_hour_ago = time.time() - 3600
        os.utime(partial, (an_hour_ago, an_hour_ago))
        assert remove_abandoned(tmp_path) == 1
        assert os.listdir(tmp_path) == ["b.tar"]


def test_a_full_disk_is_told_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"before")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a.json'"):
        write_atomically(tmp_path / "a.json", fail)
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"before"


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new/folder"

    def write(folder: Path) -> None:
        assert not list(tmp_path.rglob("inside"))
        (folder / "inside").mkdir()
        (folder / "inside/a").write_text("whole")

    write_folder_atomically(target, write)
    assert os.listdir(target.parent) == ["folder"]
    assert (target / "inside/a").read_text() == "whole"
    target.joinpath("inside/a").write_text("of a faster process")
    write_folder_atomically(target, lambda folder: (folder / "b").touch())
    assert os.listdir(target) == ["inside"]

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "empty").mkdir()
    for place in ("empty", "missing"):  # an empty folder is no faster process
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/{place}'"):
            write_folder_atomically(tmp_path / place, fail)

    def fail_in_safetensors(folder: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match=f"^{tmp_path}/missing cannot be written: .* No space left on device"):
        write_folder_atomically(tmp_path / "missing", fail_in_safetensors)
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]
    write_folder_atomically(tmp_path / "empty", lambda folder: (folder / "b").touch())
    assert os.listdir(tmp_path / "empty") == ["b"]


def test_a_durable_folder_is_flushed_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []  # name of what is flushed, and True once the folder has its name
    target = tmp_path / "folder"
    monkeypatch.setattr(atomic, "flush", lambda path: flushed.append((path.name, target.exists())))

    def write(folder: Path) -> None:
        (folder / "inside").mkdir()
        (folder / "inside/a").touch()

    write_folder_atomically(target, write, durable=True)
    *before, (last, named) = flushed
    assert (last, named) == (tmp_path.name, True)
    assert sorted(name for name, _ in before)[1:] == ["a", "inside"]  # the first is the unnamed folder's own
    assert not any(named for _, named in before)


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    old = time.time() - 3600
    with writer(tmp_path / "other.tar") as process:
        process.kill()
        process.wait(timeout=120)
        (partial,) = tmp_path.glob(".*")
        os.utime(partial, (old, old))
        write_atomically(tmp_path / "a.json", lambda file: file.write(b"{}"))
        assert os.listdir(tmp_path) == ["a.json"]


def test_folders_of_killed_writers_are_removed_with_their_locks(tmp_path: Path) -> None:
    abandoned = tmp_path / ".out-12345678.partial.folder"
    abandoned.mkdir()
    with writer(tmp_path / "other") as process:
        (partial,) = tmp_path.glob(".*.partial")
        Path(f"{partial}.folder").mkdir()
        write_folder_atomically(tmp_path / "out", lambda folder: (folder / "a").touch())
        assert sorted(os.listdir(tmp_path)) == sorted(["out", partial.name, f"{partial.name}.folder"])
        process.kill()
