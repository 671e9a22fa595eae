"""Caches on disk: the user's cache folder, and folders of bounded size that processes share."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rfdit.limits import Count
from rfdit.storage.checksum import blake2b_of
from rfdit.storage.locks import locked, make_locked, remove_unlocked

RAM = Path("/dev/shm")
KEPT = 0.9  # fraction of the limit that an eviction leaves, so that not every entry causes one
ABANDONED = 3600.0  # seconds after which the writer of a digest without its file must be dead
UNFINISHED, DIGEST = ".part", ".b2"
ENTRY = re.compile("[0-9a-f]{30}")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def cache_root() -> Path:
    """The user's cache folder, for files that rfdit can make again: $XDG_CACHE_HOME/rfdit or ~/.cache/rfdit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfdit"


def default_folder() -> Path:
    """This user's folder of a `DiskCache`: in RAM if the system has a folder there, else in the temporary folder."""
    root = RAM if RAM.is_dir() and os.access(RAM, os.W_OK) else Path(tempfile.gettempdir())
    return root / f"rfdit-{os.getuid()}"


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    used: int  # when, in nanoseconds


class DiskCache:
    """Files by name; the least recently used are evicted when they exceed a number of bytes.

    folder: the files' folder; None is `default_folder()`. Files stay for the next run, in RAM too.
    max_bytes: limit of the bytes of all entries, and at most half of the folder's file system. Entries that
        are being written are not counted.

    Any number of processes may use a folder. An entry is complete or missing. An open entry can be read
    to its end even if it is evicted meanwhile. Each has a digest, which is compared when it is opened: what a
    loss of power has cut is written again.

    Raises ValueError for a limit of 0 or less, or a default folder of another user.
    """

    def __init__(self, *, folder: str | None = None, max_bytes: Count) -> None:
        if max_bytes <= 0:
            raise ValueError(f"data.reader.images.max_bytes={max_bytes} must be more than 0")
        self.folder = default_folder() if folder is None else Path(folder).expanduser().absolute()
        self.max_bytes = max_bytes
        self._swept = False

    def open(self, name: str, *, check: bool = True) -> BinaryIO | None:
        """An entry, open for reading; None if it is missing, or damaged, which removes it.

        check: compare it with its digest, for which all of it is read.
        """
        path = self._path(name)
        try:
            file = path.open("rb")
        except OSError:
            return None
        if check and not _is_whole(file, path):
            file.close()
            self.remove(name)
            return None
        with contextlib.suppress(OSError):  # evicted meanwhile
            os.utime(path, ns=(time.time_ns(),) * 2)
        return file

    def put(self, name: str, write: Callable[[BinaryIO], object]) -> Path:
        """Store what `write` writes; returns its path.

        If the disk is full, half of the cache is evicted and `write` is called once more.
        Raises OSError if there is still no room, CacheFullError for an entry larger than the limit, and
        whatever `write` raises.
        """
        self._put(name, write).close()
        return self._path(name)

    def get_or_put(self, name: str, write: Callable[[BinaryIO], object]) -> Path:
        """The path of an entry, as `open_or_put`. Another process may evict it before it is opened."""
        self.open_or_put(name, write).close()
        return self._path(name)

    def open_or_put(self, name: str, write: Callable[[BinaryIO], object], *, check: bool = True) -> BinaryIO:
        """An entry, as `open`; if it is missing, one process writes it while the others wait."""
        if (file := self.open(name, check=check)) is not None:
            return file
        with _lock(self._path(name).parent / "lock"):
            return self.open(name, check=check) or self._put(name, write)

    def remove(self, name: str) -> None:
        """Remove an entry, if it exists."""
        path = self._path(name)
        with self._locked() as total:
            total.value -= _size(path) + _size(_digest_path(path))
            path.unlink(missing_ok=True)
            _digest_path(path).unlink(missing_ok=True)

    def total_bytes(self) -> int:
        """The bytes of all entries, as the file system rounds them."""
        return sum(entry.size for entry in self._entries())

    def _path(self, name: str) -> Path:
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return self._prepared() / digest[:2] / digest[2:]

    def _prepared(self) -> Path:
        """The folder, made if it is missing, without the unfinished files of dead writers.

        Raises ValueError if the default folder, which any user could make, is another user's.
        """
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.folder == default_folder() and (owner := self.folder.lstat().st_uid) != os.getuid():
            raise ValueError(
                f"data.reader.images.folder={self.folder} belongs to user {owner}; give another folder"
            )
        if not self._swept:
            self._swept = True
            for part in self.folder.glob(f"[0-9a-f][0-9a-f]/*{UNFINISHED}"):
                _remove_abandoned(part)
        return self.folder

    def _limit(self) -> int:
        return min(self.max_bytes, shutil.disk_usage(self._prepared()).total // 2)

    def _put(self, name: str, write: Callable[[BinaryIO], object]) -> BinaryIO:
        try:
            return self._store(name, write)
        except OSError as error:
            if error.errno not in NO_ROOM or isinstance(error, CacheFullError):
                raise
        with self._locked() as total:
            total.value = self._evict(self._limit() // 2)
        return self._store(name, write)

    def _store(self, name: str, write: Callable[[BinaryIO], object]) -> BinaryIO:
        path = self._path(name)
        path.parent.mkdir(exist_ok=True)
        with _unfinished(path.parent) as part:
            digest = _digest_path(part)
            with part.open("w+b") as file:
                write(file)
                file.flush()
                digest.write_text(blake2b_of(file))
            entry = part.open("rb")  # before it can be evicted
            try:
                self._insert(part, digest, path)
            except BaseException:
                entry.close()
                raise
        return entry

    def _insert(self, part: Path, digest: Path, path: Path) -> None:
        """Make room for a finished file and give it its name."""
        size, limit = _size(part) + _size(digest), self._limit()
        if size > limit:
            raise CacheFullError(size, limit)
        os.utime(part, ns=(time.time_ns(),) * 2)
        with self._locked() as total:
            replaced = _size(path) + _size(_digest_path(path))
            if total.value + size - replaced > limit:
                total.value = self._evict(min(int(limit * KEPT), limit - size))
                replaced = _size(path) + _size(_digest_path(path))
            digest.rename(_digest_path(path))
            part.rename(path)
            total.value += size - replaced

    def _evict(self, limit: int) -> int:
        """Evict the least recently used entries until at most `limit` bytes are left; returns their number."""
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= limit:
                break
            entry.path.unlink(missing_ok=True)
            _digest_path(entry.path).unlink(missing_ok=True)
            total -= entry.size
        return total

    def _entries(self) -> Iterator[_Entry]:
        """All entries; unfinished files of dead writers are removed on the way."""
        for path in self._prepared().glob("[0-9a-f][0-9a-f]/*"):
            try:
                stat = path.stat()
            except OSError:  # removed meanwhile
                continue
            if ENTRY.fullmatch(path.name):
                yield _Entry(path, _size(path) + _size(_digest_path(path)), stat.st_mtime_ns)
                continue
            if path.suffix == UNFINISHED:
                _remove_abandoned(path)
            orphan = path.suffix == DIGEST and not path.with_suffix("").exists()
            if orphan and time.time() - stat.st_mtime > ABANDONED:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator["_Total"]:
        """Context that holds the count of bytes, which no other process changes meanwhile."""
        path = self._prepared() / "total"
        with _lock(path) as file:
            text = file.read()
            # Not counted yet, or the process that counted was killed while writing.
            total = _Total(int(text) if text.isdigit() else self.total_bytes())
            yield total
            file.seek(0)
            file.write(b"%020d" % max(total.value, 0))  # in place, which works on a full disk


@dataclass
class _Total:
    value: int


class CacheFullError(OSError):
    """An entry that is larger than the limit of the cache."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(errno.ENOSPC, f"{size} bytes do not fit into a cache of {limit}")


def _lock(path: Path) -> AbstractContextManager[BinaryIO]:
    """Context with a locked file of this user."""
    path.parent.mkdir(exist_ok=True)
    return locked(path, permissions=0o600)


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Context with a new file, locked while its writer lives, and removed at the end unless it was renamed.

    It is written through another descriptor: some file systems know a file's size only when that is closed.
    """
    handle, name = make_locked(folder, suffix=UNFINISHED, lock=fcntl.flock)
    part = Path(name)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
        _digest_path(part).unlink(missing_ok=True)
        os.close(handle)


def _remove_abandoned(part: Path) -> None:
    """Remove an unfinished file, unless its writer lives, maybe as another thread of this process."""
    if remove_unlocked(part, lock=fcntl.flock):
        _digest_path(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    """The bytes that a file takes on its file system; 0 if it does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return 0
    return max(stat.st_blocks * 512, stat.st_size)


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + DIGEST)


def _is_whole(file: BinaryIO, path: Path) -> bool:
    """Compare the file with its digest; leaves it at its beginning."""
    try:
        expected = _digest_path(path).read_bytes()
    except OSError:
        return False
    return blake2b_of(file).encode() == expected
