"""Shards that are elsewhere, copied here while they are needed."""

import contextlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import aiohttp
import fsspec
import webdataset

from rfdit.data.cache_folder import cache_root
from rfdit.data.folder_cache import CacheFullError, FolderCache
from rfdit.data.shards import is_remote

LOOKAHEAD = 2048  # samples whose shards are fetched before they are due
FETCHES = 4  # shards fetched at once by a process
PAUSES = (1.0, 4.0)  # seconds before a second and a third try
PIECE = 1 << 20
# What servers and filesystems say of a file that changes when the file does.
MARKS = ("size", "ETag", "Last-Modified", "LastModified", "last_modified", "mtime", "md5Hash", "Content-MD5")


class UnreadableShardError(Exception):
    """A shard that cannot be had; the message begins with its name and says why."""


class Spool:
    """Finds the local file of a shard, fetching it first if it is a URL or a `pipe:` command.

    A fetched shard is a whole one: it is written aside and renamed. The processes of a machine share
    the copies, and one of them fetches while the others wait.

    cache: folder above the spool's own; None is `cache_root()`.
    max_bytes: of all copies; those used last are kept.
    """

    def __init__(self, *, cache: str | None, max_bytes: int) -> None:
        root = cache_root() if cache is None else Path(cache).expanduser()
        self._copies = FolderCache(folder=str(root / "shards"), max_bytes=max_bytes)

    def open(self, url: str, identity: list[Any]) -> BinaryIO:
        """The shard's local file, open for reading.

        identity: what `identity` said of the shard that is meant; a copy belongs to one.
        Raises UnreadableShardError if it cannot be had, ValueError if there is no room for a copy.
        """
        if not is_remote(url):
            try:
                return open(url, "rb")
            except OSError as error:
                raise UnreadableShardError(f"{url}: {_reason(error)}") from error
        name = json.dumps(identity)
        try:
            for _ in range(3):  # another process may make room just now
                self._copies.get_or_put(name, lambda file: _fetch(url, file), check=False)
                if (file := self._copies.open(name, check=False)) is not None:
                    return file
        except CacheFullError as error:
            raise ValueError(f"data.reader.spool_gb is too small for {url}: {error.strerror}") from error
        except OSError as error:
            raise ValueError(
                f"data.reader.cache: {url} cannot be copied to {self._copies.folder}: {error.strerror or error}"
            ) from error
        raise ValueError(f"data.reader.spool_gb is too small for the shards that are needed at once ({url})")

    def identity(self, url: str) -> list[Any]:
        """As `shard_identity`."""
        return shard_identity(url)

    def ahead(
        self, numbers: Iterable[int], fetch: Callable[[int], Callable[[], object] | None]
    ) -> Iterator[int]:
        """The numbers, whose shards are being fetched a while before they are passed on.

        fetch: for a number, what brings its shard here, always the same for a shard; None if it is here.
        """
        window: deque[tuple[int, Callable[[], object] | None]] = deque()
        coming: Counter[Callable[[], object]] = Counter()  # shards of the window
        pool: ThreadPoolExecutor | None = None
        try:
            for number in numbers:
                fetches = fetch(number)
                if fetches is None and not window:
                    yield number
                    continue
                window.append((number, fetches))
                if fetches is not None:
                    pool = pool or ThreadPoolExecutor(FETCHES, thread_name_prefix="spool")
                    if not coming[fetches]:
                        pool.submit(_quietly, fetches)
                    coming[fetches] += 1
                if len(window) > LOOKAHEAD:
                    yield _leave(window, coming)
            while window:
                yield _leave(window, coming)
        finally:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)


def shard_identity(url: str) -> list[Any]:
    """What changes when the shard does, as plain data; raises UnreadableShardError without the shard.

    The output of a command has no such thing: it is taken to be always the same.
    """
    if url.startswith("pipe:"):
        return [url]
    try:
        if not is_remote(url):
            status = os.stat(url)
            return [os.path.realpath(url), status.st_size, status.st_mtime_ns]
        filesystem, path = fsspec.core.url_to_fs(url, **_options(url))
        about = filesystem.info(path)
    except Exception as error:  # whatever the filesystem's library raises
        raise UnreadableShardError(f"{url}: {_reason(error)}") from error
    return [url, *(str(about.get(mark)) for mark in MARKS)]


def _leave(
    window: deque[tuple[int, Callable[[], object] | None]], coming: Counter[Callable[[], object]]
) -> int:
    number, fetches = window.popleft()
    if fetches is not None:
        coming[fetches] -= 1
    return number


def _quietly(fetches: Callable[[], object]) -> None:
    # Whoever needs the shard will ask for it again, and be told.
    with contextlib.suppress(UnreadableShardError, ValueError):
        fetches()


def _fetch(url: str, file: BinaryIO) -> None:
    """Copies a shard to an open file; raises UnreadableShardError if it cannot be had whole."""
    for pause in (*PAUSES, None):
        try:
            _copy(url, file)
            return
        except _WriteError as error:
            raise error.cause from error
        except Exception as error:  # whatever the filesystem's library raises
            if pause is None or isinstance(error, FileNotFoundError | ImportError | PermissionError):
                raise UnreadableShardError(f"{url}: {_reason(error)}") from error
            time.sleep(pause)
            file.seek(0)
            file.truncate()


class _WriteError(Exception):
    """The copy could not be written, which is no fault of the shard's."""

    def __init__(self, cause: OSError) -> None:
        self.cause = cause


def _copy(url: str, file: BinaryIO) -> None:
    # Sequentially: not every server knows ranges.
    block = {"block_size": 0} if url.startswith("http") else {}
    opened = (
        webdataset.gopen(url) if url.startswith("pipe:") else fsspec.open(url, "rb", **block, **_options(url))
    )
    with opened as remote:
        while piece := cast(BinaryIO, remote).read(PIECE):
            try:
                file.write(piece)
            except OSError as error:
                raise _WriteError(error) from error


def _options(url: str) -> dict[str, Any]:
    """A server that falls silent is given up after a minute."""
    if not url.startswith("http"):
        return {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
    return {"client_kwargs": {"timeout": timeout}}


def _reason(error: Exception) -> str:
    """What a library's error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
