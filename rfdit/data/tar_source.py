"""Tar shards as a source: found by an index, read a sample at a time."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
from jaxtyping import Int

from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample
from rfdit.data.shard_index import IndexedShard, index_shards
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.spool import Spool
from rfdit.data.tar import parse_sample

OPEN_SHARDS = 64  # that a process keeps at hand


class TarReader:
    """Opens LAION-style tar shards: KEY.jpg (or png, webp, ...), KEY.txt, KEY.json.

    Each shard is read through once to find its samples; the result, 16 bytes a sample, is kept under
    the cache folder, named after the shard's size and time of change. A shard that is no local file
    (http(s), s3, gs through fsspec, or a `pipe:` command) is copied to the spool when it is needed.

    cache: folder for indices and spooled shards; None is `cache_root()`.
    spool_gb: the size of the spool on each machine; the shards used last are kept.
    """

    suffixes = (".tar",)

    def __init__(self, *, cache: str | None = None, spool_gb: float = 50.0) -> None:
        self.cache, self.spool_gb = cache, spool_gb

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> "TarSource":
        """The samples that pass the filters. Damaged and missing shards are counted, not raised."""
        spool = Spool(cache=self.cache, max_bytes=int(self.spool_gb * 1e9))
        indexed = index_shards(
            shards, spool=spool, filters=filters, image_sizes=image_sizes, cache=self.cache
        )
        return TarSource(indexed, spool=spool)


class TarSource:
    """The samples of indexed tar shards. See `Source`."""

    def __init__(self, shards: Sequence[IndexedShard], *, spool: Spool) -> None:
        self.shard_sizes = [shard.samples for shard in shards]
        self._shards, self._spool = list(shards), spool
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self._open: OrderedDict[int, tuple[BinaryIO, Int[np.ndarray, "n 2"]]] = OrderedDict()

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        for number in self._spool.ahead(numbers, self._url):
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

    def _url(self, number: int) -> str:
        return self._shards[self._shard_of(number)].url

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
            file = self._spool.open(self._shards[shard].url)
        except OSError as error:
            raise SkippedSampleError(SkipReason.UNREADABLE_SHARD, str(error)) from error
        self._open[shard] = file, self._shards[shard].spans()
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)[1][0].close()
        return self._open[shard]

    def __getstate__(self) -> dict[str, object]:
        # Another process opens its own files.
        return self.__dict__ | {"_open": OrderedDict()}
