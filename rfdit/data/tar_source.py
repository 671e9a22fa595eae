"""Tar shards as a source: found by an index, read a sample at a time."""

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int

from rfdit.data.cache_folder import cache_root
from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample
from rfdit.data.shard_index import IndexedShard, Indexer
from rfdit.data.shards import is_remote
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.spool import Spool, UnreadableShardError
from rfdit.data.tar import parse_sample

OPEN_SHARDS, OPEN_COPIES = 256, 32  # that a process keeps at hand, of files and of copies


class TarReader:
    """Opens LAION-style tar shards: KEY.jpg (or png, webp, ...), KEY.txt, KEY.json.

    Each shard is read through once to find its samples; the result, 16 bytes a sample, is kept under
    the cache folder, named after the shard's size and time of change. A shard that is no local file
    (http(s), s3, gs through fsspec, or a `pipe:` command) is copied to the spool when it is needed.

    caption_key: where filters find a sample's caption, as in `SampleDecoder`.
    cache: folder for indices and spooled shards; None is `cache_root()`.
    spool_gb: the size of the spool on each machine; the shards used last are kept. It should hold those
        that are mixed with each other (data.shuffle_shards, for each bucket) twice.
    """

    suffixes = (".tar",)

    def __init__(
        self, *, caption_key: str | None = "txt", cache: str | None = None, spool_gb: float = 50.0
    ) -> None:
        if spool_gb <= 0:
            raise ValueError(f"data.reader.spool_gb={spool_gb:g} must be more than 0")
        self.caption_key, self.cache, self.spool_gb = caption_key, cache, spool_gb

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> "TarSource":
        """The samples that pass the filters. Damaged and missing shards are counted, not raised.

        Warns of shards that cannot be read; raises ValueError if the cache cannot be written to.
        """
        spool = Spool(cache=self.cache, max_bytes=int(self.spool_gb * 1e9))
        root = cache_root() if self.cache is None else Path(self.cache).expanduser()
        index = Indexer(spool, filters, image_sizes, self.caption_key, root / "index")
        indexed = index(shards)
        problems = [shard.problem for shard in indexed if shard.problem]
        if problems:
            warnings.warn(
                f"data.shards: {len(problems)} of {len(shards)} shards cannot be read, the first is {problems[0]}",
                stacklevel=2,
            )
        return TarSource(indexed, spool=spool)


class TarSource:
    """The samples of indexed tar shards. See `Source`."""

    def __init__(self, shards: Sequence[IndexedShard], *, spool: Spool) -> None:
        self.shard_sizes = [shard.samples for shard in shards]
        self._shards, self._spool = list(shards), spool
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self._fetches: dict[str, Callable[[], object]] = {}
        self._open: OrderedDict[int, tuple[BinaryIO, Int[np.ndarray, "n 2"]]] = OrderedDict()

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        for number in self._spool.ahead(numbers, self._fetch):
            try:
                yield self._read(number)
            except SkippedSampleError as skipped:
                yield skipped

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

    def _fetch(self, number: int) -> Callable[[], object] | None:
        """What brings the sample's shard here, if it is elsewhere."""
        shard = self._shards[self._shard_of(number)]
        if not is_remote(shard.url):
            return None
        if shard.url not in self._fetches:
            self._fetches[shard.url] = lambda: self._spool.open(shard.url, shard.identity).close()
        return self._fetches[shard.url]

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
            file = self._spool.open(self._shards[shard].url, self._shards[shard].identity)
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
        return self.__dict__ | {"_open": OrderedDict(), "_fetches": {}}
