"""Shards that are elsewhere, copied here while they are needed."""

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import webdataset

from rfdit.data.cache_folder import cache_root
from rfdit.data.folder_cache import FolderCache
from rfdit.data.shards import is_remote

LOOKAHEAD = 2048  # samples whose shards are fetched before they are due
FETCHES = 4  # shards fetched at once by a process
PIECE = 1 << 20


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

    def open(self, url: str) -> BinaryIO:
        """The shard's local file, open for reading; raises OSError if it cannot be had."""
        if not is_remote(url):
            return open(url, "rb")
        for _ in range(3):  # another process may make room just now
            self._copies.get_or_put(url, lambda file: _fetch(url, file), check=False)
            file = self._copies.open(url, check=False)
            if file is not None:
                return file
        raise OSError(f"{url}: its copy is gone before it can be opened; raise data.reader.spool_gb")

    def identity(self, url: str) -> list[Any]:
        """What changes when the shard does, as plain data; raises OSError if there is no such shard.

        The output of a command has no such thing: it is taken to be always the same.
        """
        if url.startswith("pipe:"):
            return [url]
        if not is_remote(url):
            status = os.stat(url)
            return [os.path.realpath(url), status.st_size, status.st_mtime_ns]
        try:
            filesystem, path = fsspec.core.url_to_fs(url)
            about = filesystem.info(path)
        except Exception as error:  # whatever the filesystem's library raises
            raise OSError(f"{url}: {error}") from error
        marks = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified")
        return [url, *(str(about.get(mark)) for mark in marks)]

    def ahead(self, numbers: Iterable[int], url_of: Callable[[int], str]) -> Iterator[int]:
        """The numbers, whose shards are being fetched a while before they are passed on."""
        window: deque[int] = deque()
        seen: set[str] = set()
        pool: ThreadPoolExecutor | None = None
        for number in numbers:
            url = url_of(number)
            if not is_remote(url) and not window:
                yield number
                continue
            window.append(number)
            if is_remote(url) and url not in seen:
                pool = pool or ThreadPoolExecutor(FETCHES, thread_name_prefix="spool")
                pool.submit(self._prefetch, url)
                seen.add(url)
            if len(window) > LOOKAHEAD:
                yield window.popleft()
                seen &= set(map(url_of, window)) if len(seen) > FETCHES * 64 else seen
        yield from window

    def _prefetch(self, url: str) -> None:
        with contextlib.suppress(OSError):  # whoever needs it will ask again, and be told
            self.open(url).close()


def _fetch(url: str, file: BinaryIO) -> None:
    """Copies a shard to an open file; raises OSError if it cannot be had whole."""
    try:
        if url.startswith("pipe:"):
            with webdataset.gopen(url) as pipe:
                shutil.copyfileobj(pipe, file, PIECE)
            return
        with fsspec.open(url, "rb") as remote:
            shutil.copyfileobj(cast(BinaryIO, remote), file, PIECE)
    except Exception as error:  # whatever the filesystem's library raises
        raise OSError(f"{url}: {error}") from error
