"""A folder of bounded size that the processes of a machine share as their cache."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

RAM = Path("/dev/shm")
KEPT = 0.9  # of the limit, when something has to go: so that it goes not at every turn
ABANDONED = 3600.0  # seconds, after which the writer of a digest without its file must be dead
UNFINISHED, DIGEST = ".part", ".b2"
ENTRY = re.compile("[0-9a-f]{30}")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def default_folder() -> Path:
    """In RAM where the system has a folder there, else in the temporary folder; of this user alone."""
    root = RAM if RAM.is_dir() and os.access(RAM, os.W_OK) else Path(tempfile.gettempdir())
    return root / f"rfdit-{os.getuid()}"


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    used: int  # when, in nanoseconds


class FolderCache:
    """Files by name, of which the least recently used go when they become too many bytes.

    folder: where; None is `default_folder()`. What is there stays for the next run, in RAM too.
    max_bytes: of all entries, and never more than half of the folder's file system. Entries that are
        being written come on top.

    Any number of processes may use a folder. An entry is complete or not there. Who has one open can
    read it to its end even if it is evicted meanwhile. With `check`, which both who writes and who
    reads must want, an entry's digest is kept and compared whenever the entry is opened.

    Raises ValueError for a limit that is none, or a default folder that somebody else has made.
    """

    def __init__(self, *, folder: str | None = None, max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ValueError(f"data.reader.images.max_bytes={max_bytes} must be more than 0")
        self.folder = default_folder() if folder is None else Path(folder).expanduser().absolute()
        self.max_bytes = max_bytes
        self._swept = False

    def open(self, name: str, *, check: bool = True) -> BinaryIO | None:
        """An entry, open for reading; None if there is none, or only a damaged one, which is removed."""
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

    def get(self, name: str, *, check: bool = True) -> Path | None:
        """Where an entry is, as `open`. Another process may evict it before it is opened."""
        file = self.open(name, check=check)
        if file is None:
            return None
        file.close()
        return self._path(name)

    def put(self, name: str, write: Callable[[BinaryIO], None], *, check: bool = True) -> Path:
        """Stores what `write` writes and says where.

        If the disk is full, half of the cache goes and `write` is called once more.
        Raises OSError if there is no room then, or for more than the whole limit; and what `write` raises.
        """
        try:
            return self._put(name, write, check)
        except OSError as error:
            if error.errno not in NO_ROOM or isinstance(error, CacheFullError):
                raise
        with self._locked() as total:
            total.value = self._evict(self._limit() // 2)
        return self._put(name, write, check)

    def get_or_put(self, name: str, write: Callable[[BinaryIO], None], *, check: bool = True) -> Path:
        """Where an entry is, which is written if need be: by one process, for which the others wait."""
        found = self.get(name, check=check)
        if found is not None:
            return found
        with _lock(self._path(name).parent / "lock"):
            return self.get(name, check=check) or self.put(name, write, check=check)

    def remove(self, name: str) -> None:
        """Drops an entry, if it is there."""
        path = self._path(name)
        with self._locked() as total:
            total.value -= _size(path) + _size(_digest_path(path))
            path.unlink(missing_ok=True)
            _digest_path(path).unlink(missing_ok=True)

    def total_bytes(self) -> int:
        """Of all entries, as their file system rounds them."""
        return sum(entry.size for entry in self._entries())

    def _path(self, name: str) -> Path:
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return self._prepared() / digest[:2] / digest[2:]

    def _prepared(self) -> Path:
        """The folder, made by the first who needs it, and freed of what dead writers left unfinished.

        Where everybody may make the default one, it must be ours.
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

    def _put(self, name: str, write: Callable[[BinaryIO], None], check: bool) -> Path:
        path = self._path(name)
        path.parent.mkdir(exist_ok=True)
        with _unfinished(path.parent) as part:
            digest = _digest_path(part)
            with part.open("w+b") as file:
                write(file)
                file.flush()
                if check:
                    digest.write_bytes(_digest(file))
            self._take_in(part, digest, path)
        return path

    def _take_in(self, part: Path, digest: Path, path: Path) -> None:
        """Makes room for a finished file and gives it its name."""
        size, limit = _size(part) + _size(digest), self._limit()
        if size > limit:
            raise CacheFullError(size, limit)
        os.utime(part, ns=(time.time_ns(),) * 2)
        with self._locked() as total:
            replaced = _size(path) + _size(_digest_path(path))
            if total.value + size - replaced > limit:
                total.value = self._evict(min(int(limit * KEPT), limit - size))
                replaced = _size(path) + _size(_digest_path(path))
            if digest.exists():
                digest.rename(_digest_path(path))
            else:
                _digest_path(path).unlink(missing_ok=True)
            part.rename(path)
            total.value += size - replaced

    def _evict(self, limit: int) -> int:
        """Removes entries, the least recently used first, until they are at most `limit` bytes; returns how many."""
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
        """Everything that is stored; on the way, what dead writers left is removed."""
        for path in self._prepared().glob("[0-9a-f][0-9a-f]/*"):
            try:
                stat = path.stat()
            except OSError:  # gone meanwhile
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
        """The number of bytes stored, while no other process changes it."""
        path = self._prepared() / "total"
        with _lock(path) as file:
            text = file.read()
            # Nobody has counted yet, or who did was killed while writing.
            total = _Total(int(text) if text.isdigit() else self.total_bytes())
            yield total
            file.seek(0)
            file.write(b"%020d" % max(total.value, 0))  # in place: on a full disk, too


@dataclass
class _Total:
    value: int


class CacheFullError(OSError):
    """One entry is larger than all of them may be."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            errno.ENOSPC,
            f"{size} bytes do not fit into a cache of {limit}",
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[BinaryIO]:
    """Holds a file that one process can hold at a time; it lets go even if the process is killed."""
    path.parent.mkdir(exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A new file, locked as long as its writer lives; what has not been renamed is removed.

    It is written through another descriptor: some file systems tell a size only when that is closed.
    """
    while True:
        handle, name = tempfile.mkstemp(suffix=UNFINISHED, dir=folder)
        with os.fdopen(handle) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(handle).st_nlink:
                continue  # removed as abandoned in the moment before it was locked
            part = Path(name)
            try:
                yield part
            finally:
                part.unlink(missing_ok=True)
                _digest_path(part).unlink(missing_ok=True)
            return


def _remove_abandoned(part: Path) -> None:
    """Removes an unfinished file, unless its writer lives."""
    with contextlib.suppress(OSError), part.open("r+b") as file:  # locked, or finished meanwhile
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
        _digest_path(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    """What the file takes on its file system; 0 if it does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return 0
    return max(stat.st_blocks * 512, stat.st_size)


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + DIGEST)


def _digest(file: BinaryIO) -> bytes:
    file.seek(0)
    digest = hashlib.blake2b(digest_size=16)
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.digest()


def _is_whole(file: BinaryIO, path: Path) -> bool:
    """Whether the file is what its digest says; leaves it at its beginning."""
    try:
        wanted = _digest_path(path).read_bytes()
    except OSError:
        return False
    whole = _digest(file) == wanted
    file.seek(0)
    return whole
