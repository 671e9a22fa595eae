"""Locks on files, which the system releases when their holder ends, however it ends.

There are two kinds. Those of `flock` belong to an open file: threads of one process exclude each other, and
forked workers that outlive their process keep its locks. Those of `lockf` belong to the process: its forks
have none, and it can take its own again.
"""

import contextlib
import fcntl
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

Lock = Callable[[int, int], object]  # fcntl.flock or fcntl.lockf


@contextlib.contextmanager
def locked(
    path: Path, *, append: bool = False, wait: bool = True, permissions: int = 0o666
) -> Iterator[BinaryIO]:
    """Context with a file, made if it is missing, open for reading and writing, and locked with `flock`.

    append: write at the end only, where lines of several writers do not overwrite each other. So a file
        system without locks is not an error.
    wait: for another holder; otherwise raises BlockingIOError if there is one.
    """
    flags = os.O_RDWR | os.O_CREAT | (os.O_APPEND if append else 0)
    while True:
        with os.fdopen(os.open(path, flags, permissions), "ab+" if append else "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                if not append:
                    raise
            # The file may have been replaced while this process waited for the lock.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield file
                return


@contextlib.contextmanager
def only_process(path: Path, *, setting: str) -> Iterator[None]:
    """Context in which no other process works in a folder, by a lock on a file in it, made if it is missing.

    setting: the setting that names the folder.

    The lock is one of `lockf`: it is gone as soon as the process is, whatever its forks do. Where the file
    system has no locks, a warning says so.
    Raises ValueError, naming the folder and the other process, if there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows both
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another process"
            raise ValueError(
                f"{setting}={path.parent} is in use by {holder}; let it finish, or give another {setting}"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{setting}={path.parent}: {path.name} cannot be locked ({error.strerror}), so another process "
                "there would go unnoticed",
                stacklevel=3,
            )
        with contextlib.suppress(OSError):  # on a full disk, the lock holds without the name of its holder
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def make_locked(folder: Path, *, prefix: str = "", suffix: str, lock: Lock) -> tuple[int, str]:
    """A new unfinished file, open and locked while its writer lives, and its name."""
    while True:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=folder)
        try:
            lock(handle, fcntl.LOCK_EX)
        except OSError:
            os.close(handle)
            os.unlink(name)
            raise
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # removed as abandoned in the moment before it was locked


def remove_unlocked(path: Path, *, lock: Lock, quiet: float | None = None) -> bool:
    """Removes an unfinished file that is not locked with the same `lock`; returns whether it did.

    quiet: seconds without a write before it is removed.
    """
    with contextlib.suppress(OSError), path.open("r+b") as file:  # locked, or another was faster
        lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if quiet is None or time.time() - os.fstat(file.fileno()).st_mtime >= quiet:
            path.unlink()
            return True
    return False
