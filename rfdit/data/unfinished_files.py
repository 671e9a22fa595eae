"""Files that appear whole, and the removal of what killed writers left behind."""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".partial"
QUIET = 900.0  # seconds without a write, after which a writer may be dead


def write_locked(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes beside the target and renames: readers see the whole file or none, also after a power cut.

    While it is written the file is locked, which tells it from one whose writer is dead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = _locked(path)
    with open(handle, "wb") as file:
        try:
            write(file)
            file.flush()
            os.fsync(handle)
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


def _locked(path: Path) -> tuple[int, str]:
    """A new file beside `path`, open and locked, and its name."""
    while True:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", suffix=UNFINISHED, dir=path.parent)
        # A file system without locks: then none can be had by `remove_abandoned` either.
        with contextlib.suppress(OSError):
            # The process's own lock, which forked workers that outlive it do not keep, as they would flock's.
            fcntl.lockf(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, partial
        os.close(handle)  # removed as abandoned in the moment before it was locked


def remove_abandoned(folder: Path, *, names: str = "*") -> int:
    """Removes unfinished files that nobody has locked or written to for a while; returns how many.

    names: pattern of what would have become of them.
    Where locks are seen on one machine only, as on some network file systems, a writer elsewhere is
    known by its writing. This process must not be writing one itself: its own locks do not stop it.
    """
    removed = 0
    for partial in folder.glob(f".{names}-{'?' * 8}{UNFINISHED}"):
        with contextlib.suppress(OSError), partial.open("r+b") as file:  # locked, or another was faster
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > QUIET:
                partial.unlink()
                removed += 1
    return removed
