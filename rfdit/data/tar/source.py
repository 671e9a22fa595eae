"""Tar shards as a source of samples: found by an index, read one sample at a time."""

import math
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int
from rich.filesize import decimal

from rfdit.counted import counted
from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample
from rfdit.data.shards import is_remote
from rfdit.data.skips import REMEDIES, SkippedSampleError, SkipReason
from rfdit.data.source import IndexReport
from rfdit.data.tar.format import load_sample
from rfdit.data.tar.index import Indexer, ShardIndex
from rfdit.data.tar.prefetch import RemoteShard, prefetched
from rfdit.data.tar.remote import ShardMismatchError, UnreadableShardError
from rfdit.data.tar.selection import Selection
from rfdit.data.tar.sidecar import write_sidecars
from rfdit.data.tar.spool import Spool
from rfdit.limits import Positive
from rfdit.storage.disk_cache import cache_root
from rfdit.storage.lru import LRU

PREFETCH_SHARE = 0.9  # fraction of the spool, down to which `DiskCache` evicts
RETRY_AFTER = 60.0  # seconds before a shard that could not be opened is tried again
OPEN_SHARDS, OPEN_COPIES = 256, 32  # files that a process keeps open, of local shards and of copies


class TarReader:
    """Opens LAION-style tar shards: KEY.jpg (or png, webp, ...), KEY.txt, KEY.json. An `IndexingReader`.

    Each shard is read through once to find its samples. The index, 16 bytes a sample, is cached under the
    shard's size and modification time. A remote shard (http(s), s3, gs through fsspec, or a `pipe:`
    command) is copied to the spool when its first sample is due. Without a sidecar (see `rfdit index`), it
    is copied already for indexing.

    caption_key: where filters find a sample's caption, as in `SampleDecoder`.
    cache: folder of indexes and copies; None is `cache_root()`.
    index: folder or URL of the sidecars of remote shards; None if they are beside the shards.
    spool_gb: size of the spool on each machine. It should hold twice the shards that are mixed with each
        other (data.shuffle_shards, for each bucket).
    """

    suffixes = (".tar",)

    def __init__(
        self,
        *,
        caption_key: str | None = "txt",
        cache: str | None = None,
        index: str | None = None,
        spool_gb: Positive = 50.0,
    ) -> None:
        if not 0 < spool_gb < math.inf:
            raise ValueError(f"data.reader.spool_gb={spool_gb:g} must be more than 0")
        self.caption_key, self.cache, self.index, self.spool_gb = caption_key, cache, index, spool_gb

    @property
    def spool(self) -> Spool:
        """The copies of remote shards."""
        return Spool(cache=self.cache, max_bytes=int(self.spool_gb * 1e9))

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> "TarSource":
        """The samples that pass the filters. Damaged and missing shards are counted, not raised.

        Warns of shards that cannot be read. Raises ValueError if all of them cannot, if one is larger
        than the spool, or if the cache cannot be written to. Ctrl-C ends the process with a sentence.
        """
        root = cache_root() if self.cache is None else Path(self.cache).expanduser()
        selection = Selection(filters, image_sizes, self.caption_key)
        try:
            indexer = Indexer(self.spool, selection, root / "index", self.index)
            indexed = indexer(shards)
        except KeyboardInterrupt:
            print(
                "stopped while indexing shards; the next start goes on with those that are left", flush=True
            )
            raise SystemExit(130) from None
        problems = [shard.problem for shard in indexed if shard.problem]
        if problems and len(problems) == len(shards):
            raise ValueError(
                f"data.shards: none of {counted(len(shards), 'shard')} can be read, the first is {problems[0]}"
            )
        if problems:
            warnings.warn(
                f"data.shards: {len(problems)} of {len(shards)} shards cannot be read, the first is {problems[0]}",
                stacklevel=2,
            )
        source = TarSource(indexed, indexer)
        for reason, n in source.skipped().items():
            if reason in REMEDIES:
                warnings.warn(
                    f"data.shards: {n:,} {reason} are left out: {REMEDIES[SkipReason(reason)]}", stacklevel=2
                )
        return source

    def write_indexes(
        self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False, out: str | None = None
    ) -> IndexReport:
        selection = Selection(filters, image_sizes, self.caption_key)
        return write_sidecars(shards, spool=self.spool, selection=selection, out=out)


class TarSource:
    """The samples of indexed tar shards; a `ShardFilesSource`."""

    def __init__(self, shards: Sequence[ShardIndex], indexer: Indexer) -> None:
        self.shard_sizes: Sequence[int] = [shard.samples for shard in shards]
        self._shards, self._indexer, self._spool = list(shards), indexer, indexer.spool
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self._failed: dict[str, tuple[float, str]] = {}  # URL -> time and message of the last failure
        self._open = _open_files()

    def check_room(self, shards: int) -> None:
        sizes = sorted(shard.size for shard in self._shards if shard.samples and is_remote(shard.url))
        together = sum(sizes[-shards:])
        if sizes and together > self._spool.room:
            warnings.warn(
                f"{self._spool.limit} is less than the {decimal(together)} of {min(shards, len(sizes))} shards "
                "that are mixed with each other, so they are copied again and again; give twice as much as they "
                "have, or a smaller data.shuffle_shards",
                stacklevel=2,
            )

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        room = int(self._spool.room * PREFETCH_SHARE) if any(is_remote(s.url) for s in self._shards) else 0
        for number in prefetched(numbers, self._remote_shard, room=room):
            try:
                yield self._read(number)
            except SkippedSampleError as skipped:
                yield skipped

    def open_shard(self, shard: int) -> BinaryIO:
        return self._file(self._shards[shard])

    def skipped(self) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        for shard in self._shards:
            counts.update(shard.skipped)
        return counts

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        try:
            found = [self._indexer.array(shard, "image_sizes") for shard in self._shards]
        except UnreadableShardError as error:
            raise ValueError(f"data.shards: {error}") from None
        return np.concatenate(found) if found else np.empty((0, 2), np.int64)

    def _shard_of(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _remote_shard(self, number: int) -> RemoteShard | None:
        shard = self._shards[self._shard_of(number)]
        if not is_remote(shard.url):
            return None
        return RemoteShard(shard.url, shard.size, lambda: self._file(shard).close())

    def _file(self, shard: ShardIndex) -> BinaryIO:
        """The shard's file; raises UnreadableShardError, for `RETRY_AFTER` seconds without another attempt."""
        when, why = self._failed.get(shard.url, (-RETRY_AFTER, ""))
        if time.monotonic() - when < RETRY_AFTER and why:
            raise UnreadableShardError(why)
        try:
            return self._spool.open(shard.url, shard.identity, digest=shard.digest)
        except UnreadableShardError as error:
            self._failed[shard.url] = time.monotonic(), str(error)
            if isinstance(error, ShardMismatchError):
                shard.forget()
            warnings.warn(f"data.shards: {error}; its samples are left out", stacklevel=2)
            raise

    def _read(self, number: int) -> RawSample:
        shard = self._shard_of(number)
        inside, url = number - int(self._starts[shard]), self._shards[shard].url
        try:
            file, spans, links = self._opened(shard)
            return {**load_sample(file.fileno(), spans[inside], links, inside), "__url__": url}
        except SkippedSampleError as skipped:
            skipped.sample = f"sample {inside} of {url}"
            raise
        except (UnreadableShardError, OSError) as error:
            raise SkippedSampleError(SkipReason.UNREADABLE_SHARD, str(error)) from error

    def _opened(self, shard: int) -> "OpenShard":
        """The shard's file, spans and links."""
        if shard not in self._open:
            index = self._shards[shard]
            file = self._file(index)  # first: its bytes may not be those that the index describes
            spans, links = (self._indexer.array(index, name) for name in ("spans", "links"))
            self._open[shard] = file, spans, links
            # A copy that is held open takes up disk space even after it is evicted.
            self._open.shrink(OPEN_COPIES if is_remote(index.url) else OPEN_SHARDS)
        return self._open[shard]

    def __getstate__(self) -> dict[str, object]:
        # Another process opens its own files.
        return self.__dict__ | {"_open": _open_files()}


OpenShard = tuple[BinaryIO, Int[np.ndarray, "n 2"], Int[np.ndarray, "m 3"]]  # a file, its spans and links


def _open_files() -> LRU[int, OpenShard]:
    """Open shards by their numbers."""
    return LRU(OPEN_SHARDS, evicted=_close)  # a named function, since spawned workers get a pickled source


def _close(entry: OpenShard) -> None:
    entry[0].close()
