"""Images that are fetched while one trains: rows of metadata with URLs, as LAION publishes them."""

import asyncio
import hashlib
import json
import math
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int

from rfdit.data.cache_folder import cache_root
from rfdit.data.fetch import Fetcher, FetchError, FetchSession, image_extension
from rfdit.data.fetch_thread import FetchThread
from rfdit.data.filters import Filters
from rfdit.data.folder_cache import FolderCache
from rfdit.data.rot import RotLog
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.table_index import TableIndexer, caption_of
from rfdit.data.tables import Row, expand_tables
from rfdit.data.wanted_rows import WantedRows

# What LAION's releases and img2dataset call things; the first of these that a row has is used.
COLUMNS = {
    "url": ("URL", "url"),
    "caption": ("TEXT", "caption", "text"),
    "md5": ("md5", "MD5"),
    "sha256": ("sha256", "SHA256"),
}
OPENED_AT_ONCE = 8  # tables, while they are indexed

Found = RawSample | SkippedSampleError


class UrlTables:
    """Reads tables of URLs; the images are fetched when samples are asked for.

    fetcher: how.
    images: a cache of what was fetched; None for none.
    rot: where URLs alive and dead are counted; None for nowhere.
    columns: where else to look than `COLUMNS` says, as {"url": "link"}. Widths, heights and scores are
        `Filters`' columns.
    ahead: samples that are worked on before they are due. More than the fetcher's concurrency, so
        that a slow URL that is due does not let the others wait.
    check_digests: whether images whose md5 or sha256 the rows tell must have it.
    index_folder: where it is kept which rows are wanted, and those rows for random access; None is a
        folder in `cache_root()`.
    max_row_bytes: of the rows kept there.

    Raises ValueError, naming the setting, for columns it does not know.
    """

    suffixes = (".parquet", ".jsonl", ".ndjson")

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        images: FolderCache | None = None,
        rot: RotLog | None = None,
        columns: Mapping[str, str | None] | None = None,
        ahead: int = 256,
        check_digests: bool = True,
        index_folder: str | None = None,
        max_row_bytes: int = 20 * 10**9,
    ) -> None:
        unknown = set(columns or {}) - set(COLUMNS)
        if unknown:
            raise ValueError(
                f"data.reader.columns.{min(unknown)} is no column that is read; there are {', '.join(COLUMNS)}"
            )
        if ahead < 1:
            raise ValueError(f"data.reader.ahead={ahead} must be at least 1")
        self.fetcher, self.images, self.rot, self.ahead = fetcher, images, rot, ahead
        self.columns = COLUMNS | {name: (column,) for name, column in (columns or {}).items() if column}
        self.digests = ("md5", "sha256") if check_digests else ()
        self.folder = cache_root() / "url_tables" if index_folder is None else Path(index_folder).expanduser()
        self.unpacked = FolderCache(folder=str(self.folder / "rows"), max_bytes=max_row_bytes)

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> "UrlSource":
        """shards: .parquet and .jsonl files, on anything that fsspec reads; globs, too, if remote.

        A logical shard is a row group, or a run of lines: what can be read on its own.
        """
        index = TableIndexer(
            folder=self.folder,
            filters=filters,
            caption_columns=self.columns["caption"],
            url_columns=self.columns["url"],
            image_sizes=image_sizes,
        )
        paths = expand_tables(shards)
        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            rows = WantedRows(list(pool.map(index, paths)), self.unpacked)
        if not len(rows):
            listed = ", ".join(f"{n} {reason}" for reason, n in sorted(rows.skipped().items()))
            raise ValueError(
                f"data.shards: no row of {len(paths)} tables, the first of them {paths[0]}, is wanted by "
                f"data.filters: {listed or 'they are empty'}"
            )
        if self.rot is not None:
            self.rot.report_at_exit()
        return UrlSource(self, rows)


class UrlSource:
    """The wanted rows of tables, as samples; made by `UrlTables`.

    A sample has its image under the extension that its bytes tell, the caption as txt, and as json its
    row with the SHA-256 of the image's bytes. Its key is the number of the table and that of the row.
    """

    def __init__(self, reader: UrlTables, rows: WantedRows) -> None:
        self.reader, self.rows = reader, rows
        self.shard_sizes = rows.piece_sizes
        self._thread: tuple[int, FetchThread] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_thread": None}

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        due: deque[Future[Found]] = deque()
        try:
            for number in numbers:
                due.append(self._begin(number))
                if len(due) >= self.reader.ahead:
                    yield due.popleft().result()
            while due:
                yield due.popleft().result()
        finally:
            for future in due:
                future.cancel()
            if self.reader.rot is not None:
                self.reader.rot.flush()

    def skipped(self) -> Mapping[str, int]:
        return self.rows.skipped()

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        """As the tables tell; an image that has another size now is resized all the same."""
        return self.rows.image_sizes()

    def close(self) -> None:
        """Ends the connections; they open again when needed."""
        if self._thread is not None:
            self._thread[1].close()
        self._thread = None

    def _begin(self, number: int) -> "Future[Found]":
        try:
            key, row = self.rows[number]
        except SkippedSampleError as error:
            return _known(error)
        url = _text(row, self.reader.columns["url"])
        if url is None:
            return _known(SkippedSampleError(SkipReason.MISSING_IMAGE, f"row {key} has no URL"))
        digests = {
            name: found for name in self.reader.digests if (found := _text(row, self.reader.columns[name]))
        }
        return self._fetch_thread().submit(lambda session: self._sample(session, key, row, url, digests))

    def _fetch_thread(self) -> FetchThread:
        """Of this process: a forked one has none of its parent's threads."""
        if self._thread is None or self._thread[0] != os.getpid():
            self._thread = os.getpid(), FetchThread(self.reader.fetcher)
        return self._thread[1]

    async def _sample(
        self, session: FetchSession, key: str, row: Row, url: str, digests: Mapping[str, str]
    ) -> "Found":
        try:
            data = await self._image(session, url, digests)
        except FetchError as error:
            self._count(url, str(error.reason))
            error.url = url
            return error
        self._count(url, None)
        extension, caption = image_extension(data), caption_of(row, self.reader.columns["caption"])
        assert extension is not None, "fetched as an image"
        about = row | {"sha256": hashlib.sha256(data).hexdigest()}
        try:
            files: dict[str, str | bytes] = {"__key__": key, extension: data, "json": _json(about)}
            return files if caption is None else files | {"txt": caption.encode()}
        except UnicodeEncodeError as error:  # half a surrogate pair, say
            return SkippedSampleError(SkipReason.CORRUPT_METADATA, str(error))

    async def _image(self, session: FetchSession, url: str, digests: Mapping[str, str]) -> bytes:
        """From the cache, or fetched and put there. Files are touched off the event loop, which must not wait."""
        images, name = self.reader.images, json.dumps([url, digests])
        if images is None:
            return await session.fetch(url, digests=digests)
        data = await asyncio.to_thread(_cached, images, name)
        if data is None:
            data = await session.fetch(url, digests=digests)
            await asyncio.to_thread(_keep, images, name, data)
        return data

    def _count(self, url: str, cause: str | None) -> None:
        if self.reader.rot is not None:
            self.reader.rot.add(url, cause)


def _known(error: SkippedSampleError) -> "Future[Found]":
    future: Future[Found] = Future()
    future.set_result(error)
    return future


def _text(row: Row, columns: Sequence[str]) -> str | None:
    return next((row[column] for column in columns if isinstance(row.get(column), str)), None)


def _json(row: Row) -> bytes:
    """Without NaN, which is no JSON; what JSON has no form for (a date) becomes text."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(plain, ensure_ascii=False, default=str).encode()


def _cached(images: FolderCache, name: str) -> bytes | None:
    file = images.open(name)
    if file is None:
        return None
    with file:
        return file.read()


def _keep(images: FolderCache, name: str, data: bytes) -> None:
    """A cache with no room is no reason to stop: the image is here."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    try:
        images.put(name, write)
    except OSError as error:
        warnings.warn(f"data.reader.images: {error}", stacklevel=2)
