"""Images fetched during training: tables of metadata with URLs, as LAION publishes them."""

import copy
import importlib.util
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rfdit.counted import counted
from rfdit.data.filters import Filters
from rfdit.data.skips import listed
from rfdit.data.tables.index import TableIndexer
from rfdit.data.tables.selected_rows import SelectedRows
from rfdit.data.tables.table import Table, expand_tables
from rfdit.data.urls.dead_links import DeadLinks, LinkStates
from rfdit.data.urls.fetch import Fetcher
from rfdit.data.urls.fetch_thread import FetchThread
from rfdit.data.urls.request_limits import ByteBudget, Reservation
from rfdit.data.urls.samples import FetchedSample, RowSampler
from rfdit.limits import Count, NotNegative
from rfdit.processes.pools import result_of
from rfdit.storage.checksum import json_digest
from rfdit.storage.disk_cache import DiskCache, cache_root

# Names in LAION's releases and in img2dataset's; the first that a row has is used.
COLUMNS = {
    "url": ("URL", "url"),
    "caption": ("TEXT", "caption", "text"),
    "md5": ("md5", "MD5"),
    "sha256": ("sha256", "SHA256"),
}
TABLES_AT_ONCE = 8  # indexed in parallel


class UrlTables:
    """Reads tables of URLs, whose images are fetched when samples are read.

    fetcher: settings of the requests.
    images: a cache of fetched images; None for none.
    dead_links: remembers which URLs are alive; None to remember them in this process and its forks only.
    columns: names to use instead of `COLUMNS`, as {"url": "link"}. `Filters` has those of widths,
        heights and scores.
    keys: keys of a sample that the decoder reads, such as txt or json.label; null has no effect. A table
        without their columns is refused.
    ahead: samples that are fetched before they are due. More than the fetcher's concurrency, so that
        a slow URL that is due does not stop the others.
    ahead_bytes: memory limit of their images; fetching waits for room. The image that is due may exceed it.
    retry_after: seconds after which a URL with a transient failure (time limits, 5xx, 408, 425, 429,
        broken connections) is fetched again. URLs with other failures are not.
    check_digests: compare images with the md5 or sha256 of their rows.
    index_folder: for the indices of selected rows, and for these rows with random access; None is a folder
        in `cache_root()`.
    max_row_bytes: size limit of the rows stored there.

    Raises ValueError, naming the setting, for unknown columns and for numbers out of range; or if the
    packages of the extra `urls` are not installed.
    """

    suffixes = (".parquet", ".jsonl", ".ndjson")

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        images: DiskCache | None = None,
        dead_links: DeadLinks | None = None,
        columns: Mapping[str, str | None] | None = None,
        keys: Sequence[str | None] = (),
        ahead: Count = 256,
        ahead_bytes: Count = 2**29,
        retry_after: NotNegative = 900.0,
        check_digests: bool = True,
        index_folder: str | None = None,
        max_row_bytes: Count = 20 * 10**9,
    ) -> None:
        for package in ("aiohttp", "pyarrow"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"data.laion_urls needs {package}: pip install 'rfdit[urls]'")
        unknown = set(columns or {}) - set(COLUMNS)
        if unknown:
            raise ValueError(
                f"data.reader.columns.{min(unknown)} is not a column that is read; use {', '.join(COLUMNS)}"
            )
        for name, value, least in (
            ("ahead", ahead, 1),
            ("ahead_bytes", ahead_bytes, 1),
            ("retry_after", retry_after, 0),
        ):
            if value < least:
                raise ValueError(f"data.reader.{name}={value} must be at least {least}")
        self.fetcher, self.images, self.dead_links = fetcher, images, dead_links
        self.named = {name: column for name, column in (columns or {}).items() if column}
        self.columns = COLUMNS | {name: (column,) for name, column in self.named.items()}
        self.keys = [key for key in keys if key is not None]
        self.ahead, self.ahead_bytes, self.retry_after = ahead, ahead_bytes, retry_after
        self.digests = ("md5", "sha256") if check_digests else ()
        self.folder = cache_root() / "url_tables" if index_folder is None else Path(index_folder).expanduser()
        self.unpacked = DiskCache(folder=str(self.folder / "rows"), max_bytes=max_row_bytes)

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> "UrlSource":
        """shards: .parquet and .jsonl files, on anything that fsspec reads; remote ones may be globs.

        A logical shard is a row group, or 10,000 lines: what is read on its own.
        """
        index = TableIndexer(
            folder=self.folder,
            filters=filters,
            caption_columns=self.columns["caption"],
            check=self._check_columns,
            depends=[self.columns["url"], self.named, self.keys],
            image_sizes=image_sizes,
        )
        paths = expand_tables(shards)
        with ThreadPoolExecutor(TABLES_AT_ONCE) as pool:
            rows = SelectedRows(list(pool.map(index, paths)), self.unpacked)
        if not len(rows):
            raise ValueError(
                f"data.shards: no row of {counted(len(paths), 'table')}, the first of them {paths[0]}, passes "
                f"data.filters: {listed(rows.skipped()) or 'they are empty'}"
            )
        if self.dead_links is not None:
            self.dead_links.report_at_exit()
        return UrlSource(self, rows)

    def _check_columns(self, table: Table) -> None:
        """Raises ValueError if the table lacks a column, before anything is fetched in vain."""
        columns = set(table.columns)
        it_has = f"it has {', '.join(table.columns)}"
        for name, column in self.named.items():
            if column not in columns:
                raise ValueError(
                    f"data.reader.columns.{name}={column} is not a column of {table.path}; {it_has}"
                )
        if not columns.intersection(self.columns["url"]):
            raise ValueError(
                f"data.shards: {table.path} has no column {' or '.join(self.columns['url'])} of URLs; {it_has}; "
                "give data.reader.columns.url, or data=folder for images in the table or in files that it names"
            )
        for key in self.keys:
            extension, _, field = key.partition(".")
            if key == "txt":
                if not columns.intersection(self.columns["caption"]):
                    raise ValueError(
                        f"data.shards: {table.path} has no column {' or '.join(self.columns['caption'])} of captions; "
                        f"{it_has}; give data.reader.columns.caption, or data.decoder.caption_key=null to do "
                        "without captions"
                    )
            elif extension != "json" or field.partition(".")[0] not in columns:
                raise ValueError(
                    f"data.decoder: {key} is not in the samples of {table.path}, which have txt, and json.COLUMN for "
                    f"each of its columns; {it_has}"
                )

    def without_record(self) -> "UrlTables":
        reader = copy.copy(self)
        reader.dead_links = None
        return reader

    def link_states(self, rows: SelectedRows) -> LinkStates:
        """The states of the rows' URLs, which are remembered until a setting that decides them changes."""
        if self.dead_links is None:
            return LinkStates(None)
        tables = [table.name for table in rows.tables]
        rules = [
            self.fetcher.rules,
            self.digests,
            {name: self.columns[name] for name in ("url", *self.digests)},
        ]
        return self.dead_links.open(json_digest(tables, digits=16), json_digest(rules, digits=16))


class UrlSource:
    """Selected rows of tables as samples; made by `UrlTables`.

    A sample has its image under the extension of its kind, the caption as txt, and as json its row with
    the SHA-256 of the image's bytes. Its key is the number of the table and that of the row.
    """

    def __init__(self, reader: UrlTables, rows: SelectedRows) -> None:
        self.reader, self.rows = reader, rows
        self.shard_sizes = rows.piece_sizes
        self._links = reader.link_states(rows)
        self._running: tuple[int, FetchThread, RowSampler] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_running": None}

    def samples(self, numbers: Iterable[int]) -> Iterator[FetchedSample]:
        return self.samples_or_substitutes((number, iter(())) for number in numbers)

    def samples_or_substitutes(self, numbers: Iterable[tuple[int, Iterator[int]]]) -> Iterator[FetchedSample]:
        thread, sampler = self._thread()
        budget = ByteBudget(self.reader.ahead_bytes)
        pending: deque[Future[FetchedSample]] = deque()

        def submit(position: int, number: int, substitutes: Iterator[int]) -> Future[FetchedSample]:
            memory = Reservation(budget, position)
            return thread.submit(
                lambda session: sampler.sample_or_substitute(session, number, substitutes, memory)
            )

        def next_due() -> FetchedSample:
            found = result_of(pending.popleft())
            thread.call(budget.advance)
            return found

        try:
            for position, (number, substitutes) in enumerate(numbers):
                pending.append(submit(position, number, substitutes))
                if len(pending) >= self.reader.ahead:
                    yield next_due()
            while pending:
                yield next_due()
        finally:
            for future in pending:
                future.cancel()

    def skipped(self) -> Mapping[str, int]:
        return self.rows.skipped()

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        """Sizes as the tables state them; an image that has another size now is resized all the same."""
        return self.rows.image_sizes()

    def close(self) -> None:
        """Close the connections; they open again when they are needed."""
        if self._running is not None:
            self._running[1].close()
        self._running = None

    def _thread(self) -> tuple[FetchThread, RowSampler]:
        """The thread of this process; a forked process does not inherit its parent's."""
        if self._running is None or self._running[0] != os.getpid():
            sampler = RowSampler(self.reader, self.rows, self._links)
            self._running = os.getpid(), FetchThread(self.reader.fetcher), sampler
        return self._running[1], self._running[2]
