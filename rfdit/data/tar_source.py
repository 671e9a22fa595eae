"""Tar shards as a source: found by an index, read a sample at a time."""

import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int
from rich.filesize import decimal

from rfdit.data.cache_folder import cache_root
from rfdit.data.filters import Filters
from rfdit.data.prefetch import RemoteShard, fetched_ahead
from rfdit.data.remote import AnotherShardError, UnreadableShardError
from rfdit.data.sample import RawSample
from rfdit.data.shard_index import IndexedShard, Indexer
from rfdit.data.shards import is_remote
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.spool import Spool
from rfdit.data.tar import parse_sample
from rfdit.data.usable import Usable

PREFETCHED = 0.9  # of the spool: `FolderCache` empties it to this
RETRY_AFTER = 60.0  # seconds before a shard that could not be had is asked for again
OPEN_SHARDS, OPEN_COPIES = 256, 32  # that a process keeps at hand, of files and of copies


class TarReader:
    """Opens LAION-style tar shards: KEY.jpg (or png, webp, ...), KEY.txt, KEY.json.

    Each shard is read through once to find its samples; the result, 16 bytes a sample, is kept under
    the cache folder, named after the shard's size and time of change. A shard that is no local file
    (http(s), s3, gs through fsspec, or a `pipe:` command) is copied to the spool when it is needed: for
    its first sample, or already to find its samples if there is no index of it, as `rfdit.data.index`
    writes them.

    caption_key: where filters find a sample's caption, as in `SampleDecoder`.
    cache: folder for indices and spooled shards; None is `cache_root()`.
    index: folder or URL of the indexes of remote shards; None if they are beside the shards.
    spool_gb: the size of the spool on each machine; the shards used last are kept. It should hold those
        that are mixed with each other (data.shuffle_shards, for each bucket) twice.
    """

    suffixes = (".tar",)

    def __init__(
        self,
        *,
        caption_key: str | None = "txt",
        cache: str | None = None,
        index: str | None = None,
        spool_gb: float = 50.0,
    ) -> None:
        if spool_gb <= 0:
            raise ValueError(f"data.reader.spool_gb={spool_gb:g} must be more than 0")
        self.caption_key, self.cache, self.index, self.spool_gb = caption_key, cache, index, spool_gb

    @property
    def spool(self) -> Spool:
        """Where copies of remote shards are."""
        return Spool(cache=self.cache, max_bytes=int(self.spool_gb * 1e9))

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> "TarSource":
        """The samples that pass the filters. Damaged and missing shards are counted, not raised.

        Warns of shards that cannot be read; raises ValueError if that is all of them, if one is larger
        than the spool, or if the cache cannot be written to. Ctrl-C ends the process with a sentence.
        """
        root = cache_root() if self.cache is None else Path(self.cache).expanduser()
        usable = Usable(filters, image_sizes, self.caption_key)
        try:
            indexed = Indexer(self.spool, usable, root / "index", self.index)(shards)
        except KeyboardInterrupt:
            print(
                "stopped while indexing shards; the next start goes on with those that are left", flush=True
            )
            raise SystemExit(130) from None
        problems = [shard.problem for shard in indexed if shard.problem]
        if problems and len(problems) == len(shards):
            raise ValueError(
                f"data.shards: none of {len(shards)} shards can be read, the first is {problems[0]}"
            )
        if problems:
            warnings.warn(
                f"data.shards: {len(problems)} of {len(shards)} shards cannot be read, the first is {problems[0]}",
                stacklevel=2,
            )
        return TarSource(indexed, spool=self.spool)


class TarSource:
    """The samples of indexed tar shards. See `Source`."""

    def __init__(self, shards: Sequence[IndexedShard], *, spool: Spool) -> None:
        self.shard_sizes = [shard.samples for shard in shards]
        self._shards, self._spool = list(shards), spool
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self._failed: dict[str, tuple[float, str]] = {}  # by URL: when, and why
        self._open: OrderedDict[int, tuple[BinaryIO, Int[np.ndarray, "n 2"]]] = OrderedDict()

    def warn_of_small_spool(self, mixed: int) -> None:
        """Says so if copies are evicted before they are used up.

        mixed: shards that are read at a time; the largest are thought of.
        """
        sizes = sorted(shard.size for shard in self._shards if shard.samples and is_remote(shard.url))
        together = sum(sizes[-mixed:])
        if sizes and together > self._spool.room:
            warnings.warn(
                f"{self._spool.limit} is less than the {decimal(together)} of {min(mixed, len(sizes))} shards "
                "that are mixed with each other, so they are copied again and again; give twice as much as they "
                "have, or a smaller data.shuffle_shards",
                stacklevel=2,
            )

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        room = int(self._spool.room * PREFETCHED) if any(is_remote(s.url) for s in self._shards) else 0
        for number in fetched_ahead(numbers, self._remote_shard, room=room):
            try:
                yield self._read(number)
            except SkippedSampleError as skipped:
                yield skipped

    def open_shard(self, shard: int) -> BinaryIO:
        """The whole file of a shard, of a remote one the copy; raises UnreadableShardError without it."""
        return self._file(self._shards[shard])

    def skipped(self) -> Mapping[str, int]:
        counts: dict[str, int] = {}
        for shard in self._shards:
            for reason, n in shard.skipped.items():
                counts[reason] = counts.get(reason, 0) + n
        return counts

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        found = [shard.image_sizes() for shard in self._shards]
        return np.concatenate(found) if found else np.empty((0, 2), np.int64)

    def _shard_of(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _remote_shard(self, number: int) -> RemoteShard | None:
        shard = self._shards[self._shard_of(number)]
        if not is_remote(shard.url):
            return None
        return RemoteShard(shard.url, shard.size, lambda: self._file(shard).close())

    def _file(self, shard: IndexedShard) -> BinaryIO:
        """The shard's file; raises UnreadableShardError, for a while without trying, if it cannot be had."""
        when, why = self._failed.get(shard.url, (-RETRY_AFTER, ""))
        if time.monotonic() - when < RETRY_AFTER and why:
            raise UnreadableShardError(why)
        try:
            return self._spool.open(shard.url, shard.identity, digest=shard.digest)
        except UnreadableShardError as error:
            self._failed[shard.url] = time.monotonic(), str(error)
            if isinstance(error, AnotherShardError):
                shard.doubt()
            warnings.warn(f"data.shards: {error}; its samples are left out", stacklevel=2)
            raise

    def _read(self, number: int) -> RawSample:
        shard = self._shard_of(number)
        file, spans = self._opened(shard)
        start, end = spans[number - self._starts[shard]].tolist()
        try:
            data = os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise SkippedSampleError(SkipReason.UNREADABLE_SHARD, str(error)) from error
        if len(data) < end - start:
            raise SkippedSampleError(SkipReason.TRUNCATED_TAR, self._shards[shard].url)
        return parse_sample(data)

    def _opened(self, shard: int) -> tuple[BinaryIO, Int[np.ndarray, "n 2"]]:
        """The shard's file and spans."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        try:
            file = self._file(self._shards[shard])
        except UnreadableShardError as error:
            raise SkippedSampleError(SkipReason.UNREADABLE_SHARD, str(error)) from error
        self._open[shard] = file, self._shards[shard].spans()
        # A copy that is held open takes room, even if it is evicted.
        limit = OPEN_COPIES if is_remote(self._shards[shard].url) else OPEN_SHARDS
        while len(self._open) > limit:
            self._open.popitem(last=False)[1][0].close()
        return self._open[shard]

    def __getstate__(self) -> dict[str, object]:
        # Another process opens its own files.
        return self.__dict__ | {"_open": OrderedDict()}
