"""Atomic and durable writing of files, and removal of the unfinished files of killed writers."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from rfdit.storage.locks import make_locked, remove_unlocked

UNFINISHED = ".partial"
FOLDER = ".folder"  # suffix of an unfinished folder, after the name of the file that is locked for it
QUIET = 900.0  # seconds without a write after which a writer may be dead
_tidied: set[Path] = set()  # folders in which this process has looked for what killed writers left


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = False) -> None:
    """Write beside the target and rename: readers see the whole file or none, whatever other processes write.

    durable: flush the file before it gets its name, and the name before this returns, so that both
        survive a loss of power.

    The unfinished file is locked while its writer lives, which `remove_abandoned` tests; the first file that this
    process writes in a folder lets it look for those of killed writers. An exception of `write`, or a full disk,
    leaves the target as it was.
    Raises OSError, naming the target, if it cannot be written.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _tidy(path.parent)
        handle, partial = make_locked(path.parent, prefix=f".{path.name}-", suffix=UNFINISHED, lock=_lock)
        try:
            # Its buffer is flushed when it is closed too, which fails on a full disk, and leaves it closed.
            with open(handle, "wb") as file:
                write(file)
                file.flush()
                if durable:
                    os.fsync(handle)
                os.chmod(partial, 0o644)
                os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # renamed before the error
                os.unlink(partial)
            raise
        if durable:
            flush(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context in which a file or folder is written. Raises errors of a full disk as OSError with its name.

    Some do not name a file, and those of safetensors are of another type.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write text atomically, as UTF-8."""
    write_bytes(path, text.encode(), durable=durable)


def write_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda file: file.write(data), durable=durable)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write readable JSON atomically and durably."""
    write_text(path, json.dumps(data, indent=2) + "\n", durable=True)


def write_folder_atomically(folder: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Fill a new folder beside the target and rename it, unless another process was faster.

    write: takes the path of the new folder. An exception of it leaves nothing behind, and what killed writers have
        left is removed. An empty target is replaced.
    durable: flush all that is in the folder before it gets its name, and the name before this returns.
    Raises OSError, naming the folder, if it cannot be written.
    """
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _tidy(folder.parent)
        handle, partial = make_locked(folder.parent, prefix=f".{folder.name}-", suffix=UNFINISHED, lock=_lock)
        unfinished = Path(partial + FOLDER)
        try:
            unfinished.mkdir()
            write(unfinished)
            if durable:
                for path in (*unfinished.rglob("*"), unfinished):
                    flush(path)
            try:
                unfinished.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                    raise
            if durable:
                flush(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            os.unlink(partial)
            os.close(handle)


def _tidy(folder: Path) -> None:
    """Once for a folder, remove what killed writers have left in it."""
    if folder not in _tidied:
        _tidied.add(folder)
        remove_abandoned(folder)


def _lock(handle: int, operation: int) -> None:
    """The lock of the process, which forked workers that outlive it do not keep.

    On a file system without locks, `remove_abandoned` gets none either.
    """
    with contextlib.suppress(OSError):
        fcntl.lockf(handle, operation)


def remove_abandoned(folder: Path, *, names: str = "*", quiet: float = QUIET) -> int:
    """Remove unfinished files that are not locked and were not written to for `quiet` seconds; returns their number.

    Unfinished folders are removed with the file that is locked for them.

    names: pattern of the final names.
    The time is for network file systems whose locks are seen on one machine only. This process must
    not be writing a matching file itself: its own locks do not stop it.
    """
    pattern = f".{names}-{'?' * 8}{UNFINISHED}"
    removed = sum(remove_unlocked(partial, lock=fcntl.lockf, quiet=quiet) for partial in folder.glob(pattern))
    for unfinished in folder.glob(pattern + FOLDER):
        if not unfinished.with_name(unfinished.name.removesuffix(FOLDER)).exists():
            shutil.rmtree(unfinished, ignore_errors=True)
    return removed


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
