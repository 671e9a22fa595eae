"""An endless, or one pass's, stream of batches from tar shards, split over ranks and workers."""

import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

from rfdit.batch import Batch
from rfdit.data.decode import BadSample, Decoder, Sample
from rfdit.data.skips import SkipCounts
from rfdit.randomness import SampleGenerator

EMPTY_PASSES = 10  # a reader that gets nothing from so many passes gives up


class TarStream(IterableDataset[Batch]):
    """Reads shards in an order fixed by (seed, epoch) and gives batches.

    In every epoch all shards are permuted, then dealt to the readers (each worker of each rank is
    one). With fewer shards than readers every reader reads all shards and takes every n-th sample.
    Then a buffer shuffles samples. Batch k of worker w of W, on rank r of R, holds the positions
    ((k W + w) R + r) B ... + B - 1 of the endless stream.

    start_batch: batches that this rank has had; the stream goes on after them, exactly so with the
        same ranks, workers and batch size as long as no sample was skipped. It reads over what was
        delivered without decoding it.
    shuffle_buffer: samples; 0 keeps the shards' own order, shards included.
    endless: False gives one pass, whose last batch may be smaller.
    flip: mirror half of the pictures; wrong for captions that speak of left and right.
    skips: counts what could not be used; it never ends the stream.
    Raises RuntimeError if pass after pass yields no sample at all.
    """

    def __init__(
        self,
        *,
        shards: Sequence[str],
        decoder: Decoder,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        shuffle_buffer: int = 1000,
        endless: bool = True,
        start_batch: int = 0,
        flip: bool = False,
        skips: SkipCounts | None = None,
    ) -> None:
        super().__init__()
        self.shards, self.decoder, self.batch_size = list(shards), decoder, batch_size
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.shuffle_buffer, self.endless, self.start_batch = shuffle_buffer, endless, start_batch
        self.flip, self.skips = flip, skips or SkipCounts(workers=1)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        process, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        # The loader asks its workers in turn, from the first; after a resume the first one takes
        # the part of the worker whose turn it was.
        worker = (process + self.start_batch) % workers
        first = -(-(self.start_batch - worker) // workers) if self.start_batch > worker else 0
        reader, readers = self.rank * workers + worker, self.ranks * workers
        raw = islice(self._raw(reader, readers, process), first * self.batch_size, None)
        samples = self._decoded(raw, process)
        for k in count(first):
            chunk = list(islice(samples, self.batch_size))
            if not chunk:
                return
            start = ((k * workers + worker) * self.ranks + self.rank) * self.batch_size
            yield self._batch(chunk, start)

    def _raw(self, reader: int, readers: int, process: int) -> Iterator[dict[str, Any]]:
        """Undecoded samples of one reader, epoch after epoch."""
        empty = 0
        for epoch in count() if self.endless else range(1):
            found = False
            for sample in self._epoch(epoch, reader, readers, process):
                found = True
                yield sample
            empty = 0 if found else empty + 1
            if empty == EMPTY_PASSES:
                raise RuntimeError(f"{EMPTY_PASSES} passes over data.shards gave no sample: {self._why()}")

    def _epoch(self, epoch: int, reader: int, readers: int, process: int) -> Iterator[dict[str, Any]]:
        shards = list(self.shards)
        if self.shuffle_buffer:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(shards))
            shards = [shards[i] for i in order]
        by_shard = len(shards) >= readers
        mine = shards[reader::readers] if by_shard else shards
        # What all readers read is counted by the first alone.
        handler = self._tar_handler(process if by_shard or reader == 0 else None)
        streams = url_opener(({"url": shard} for shard in mine), handler=handler)
        samples = group_by_keys(tar_file_expander(streams, handler=handler), handler=handler)
        if not by_shard:
            samples = islice(samples, reader, None, readers)
        if self.shuffle_buffer:
            rng = random.Random(f"{self.seed}/{epoch}/{reader}")
            samples = wds.filters.shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=rng)(samples)
        yield from samples

    def _tar_handler(self, process: int | None) -> Callable[[Exception], bool]:
        def handler(error: Exception) -> bool:
            if process is not None:
                broken = isinstance(error, (tarfile.TarError, EOFError, ValueError))
                self.skips.add(process, "broken_tar" if broken else "unreadable_shard")
            return True

        return handler

    def _decoded(self, raw: Iterator[dict[str, Any]], process: int) -> Iterator[Sample]:
        bad = 0
        for member in raw:
            try:
                sample = self.decoder(member)
            except BadSample as error:
                self.skips.add(process, error.reason)
                bad += 1
                if bad >= 100_000:
                    raise RuntimeError(f"{bad} samples in a row could not be used: {self._why()}") from None
                continue
            bad = 0
            yield sample

    def _why(self) -> str:
        """The counts so far, for an error message."""
        counts = {reason: n for reason, n in self.skips.totals().items() if n}
        listed = ", ".join(f"{n} {reason}" for reason, n in counts.items())
        return f"{listed or 'no sample was found'} in {self.shards[0]} and {len(self.shards) - 1} others"

    def _batch(self, samples: list[Sample], start: int) -> Batch:
        positions = torch.arange(start, start + len(samples))
        images = torch.stack([sample.image for sample in samples])
        if self.flip:
            draw = SampleGenerator(seed=self.seed, keys=positions, purpose="flip").uniform()
            images = torch.where((draw < 0.5)[:, None, None, None], images.flip(-1), images)
        captions = [sample.caption for sample in samples if sample.caption is not None]
        labels = [sample.label for sample in samples if sample.label is not None]
        return Batch(
            images=images,
            positions=positions,
            captions=captions or None,
            labels=torch.tensor(labels) if labels else None,
            keys=[sample.key for sample in samples],
        )
