"""Images that are fetched while one trains: rows of metadata with URLs, as LAION publishes them."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rfdit.data.cache_folder import cache_root
from rfdit.data.fetch import Fetcher
from rfdit.data.fetch_thread import FetchThread
from rfdit.data.filters import Filters
from rfdit.data.folder_cache import FolderCache
from rfdit.data.outcomes import Outcomes
from rfdit.data.request_limits import ByteBudget, Portion
from rfdit.data.rot import RotLog
from rfdit.data.table_index import TableIndexer
from rfdit.data.tables import expand_tables
from rfdit.data.url_rows import Found, RowSettings, UrlRows
from rfdit.data.wanted_rows import WantedRows

# What LAION's releases and img2dataset call things; the first of these that a row has is used.
COLUMNS = {
    "url": ("URL", "url"),
    "caption": ("TEXT", "caption", "text"),
    "md5": ("md5", "MD5"),
    "sha256": ("sha256", "SHA256"),
}
OPENED_AT_ONCE = 8  # tables, while they are indexed


class UrlTables:
    """Reads tables of URLs; the images are fetched when samples are asked for.

    fetcher: how.
    images: a cache of what was fetched; None for none.
    rot: where it is kept which URLs are alive and dead; None for in no file that lasts.
    columns: where else to look than `COLUMNS` says, as {"url": "link"}. Widths, heights and scores are
        `Filters`' columns.
    ahead: samples that are worked on before they are due. More than the fetcher's concurrency, so
        that a slow URL that is due does not let the others wait.
    ahead_bytes: that their images may take; fetching waits for room. The due one may exceed it.
    ask_again: seconds for which a URL is left alone whose server failed in a way that may pass (time
        limits, 5xx, 408, 425, 429, broken connections). One that is dead otherwise is not asked again.
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
        ahead_bytes: int = 2**29,
        ask_again: float = 900.0,
        check_digests: bool = True,
        index_folder: str | None = None,
        max_row_bytes: int = 20 * 10**9,
    ) -> None:
        unknown = set(columns or {}) - set(COLUMNS)
        if unknown:
            raise ValueError(
                f"data.reader.columns.{min(unknown)} is no column that is read; there are {', '.join(COLUMNS)}"
            )
        for name, value, least in (
            ("ahead", ahead, 1),
            ("ahead_bytes", ahead_bytes, 1),
            ("ask_again", ask_again, 0),
        ):
            if value < least:
                raise ValueError(f"data.reader.{name}={value} must be at least {least}")
        self.fetcher, self.rot, self.ahead, self.ahead_bytes = fetcher, rot, ahead, ahead_bytes
        self.columns = COLUMNS | {name: (column,) for name, column in (columns or {}).items() if column}
        self.row_settings = RowSettings(
            columns=self.columns,
            digests=("md5", "sha256") if check_digests else (),
            images=images,
            rot=rot,
            ask_again=ask_again,
        )
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

    def outcomes(self, rows: WantedRows) -> Outcomes:
        """What is known of the rows' URLs, if what decides about them has not changed."""
        if self.rot is None:
            return Outcomes(None)
        tables = [table.name for table in rows.tables]
        digests = self.row_settings.digests
        rules = [self.fetcher.rules, digests, {name: self.columns[name] for name in ("url", *digests)}]
        return self.rot.outcomes(_digest(tables), _digest(rules))


class UrlSource:
    """The wanted rows of tables, as samples; made by `UrlTables`.

    A sample has its image under the extension that its bytes tell, the caption as txt, and as json its
    row with the SHA-256 of the image's bytes. Its key is the number of the table and that of the row.
    """

    def __init__(self, reader: UrlTables, rows: WantedRows) -> None:
        self.reader, self.rows = reader, rows
        self.shard_sizes = rows.piece_sizes
        self._outcomes = reader.outcomes(rows)
        self._here: tuple[int, FetchThread, UrlRows] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_here": None}

    def samples(self, numbers: Iterable[int]) -> Iterator[Found]:
        return self.samples_or_substitutes((number, iter(())) for number in numbers)

    def samples_or_substitutes(self, numbers: Iterable[tuple[int, Iterator[int]]]) -> Iterator[Found]:
        thread, _ = self._running()
        budget = ByteBudget(self.reader.ahead_bytes)
        due: deque[Future[Found]] = deque()

        def next_due() -> Found:
            found = due.popleft().result()
            thread.call(budget.advance)
            return found

        try:
            for place, (number, substitutes) in enumerate(numbers):
                due.append(self._begin(budget, place, number, substitutes))
                if len(due) >= self.reader.ahead:
                    yield next_due()
            while due:
                yield next_due()
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
        if self._here is not None:
            self._here[1].close()
        self._here = None

    def _begin(
        self, budget: ByteBudget, place: int, number: int, substitutes: Iterable[int]
    ) -> "Future[Found]":
        thread, rows = self._running()
        return thread.submit(
            lambda session: rows.sample_or_substitute(session, number, substitutes, Portion(budget, place))
        )

    def _running(self) -> tuple[FetchThread, UrlRows]:
        """Of this process: a forked one has none of its parent's threads."""
        if self._here is None or self._here[0] != os.getpid():
            rows = UrlRows(self.reader.row_settings, self.rows, self._outcomes)
            self._here = os.getpid(), FetchThread(self.reader.fetcher), rows
        return self._here[1], self._here[2]


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
