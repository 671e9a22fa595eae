"""An endless or a single pass over tar shards, as batches whose place in the stream is known."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import IterableDataset, get_worker_info

from rfdit.batch import Batch
from rfdit.data.decode import RawSample, Sample, SampleDecoder
from rfdit.data.skips import SkipCounts, SkippedSampleError, SkipReason
from rfdit.data.tar import read_shard
from rfdit.randomness import SampleGenerator


@dataclass(frozen=True)
class Reader:
    """One of the `count` readers (ranks x workers) that share a list of shards."""

    index: int
    count: int

    def reads(self, turn: int) -> bool:
        """Whether this reader takes the element with this number."""
        return turn % self.count == self.index


class TarStream(IterableDataset[Batch]):
    """Reads, shuffles, decodes and batches the samples of tar shards; a DataLoader adds workers.

    shards: as `expand_shards` gives them, the same on every rank.
    endless: for ever, shuffled anew in each epoch; otherwise one pass in the shards' order, whose
        last batch may be smaller.
    shuffle_buffer: samples (undecoded) held by each worker, from which the next is drawn.
    rank, ranks: which share of the samples this process delivers.
    workers: of the DataLoader that reads this stream; 0 is the process itself.
    start_batch: batches this rank has delivered before; the stream continues after them.
    flip: mirror each image with probability 1/2.

    The n-th batch of a rank has positions (n * ranks + rank) * batch_size + 0, 1, ...: every sample
    of all ranks has its own, and the randomness that belongs to the sample is keyed by it.

    Within an epoch the readers (ranks x workers) share the shards, each shard read by one of them.
    If there are fewer shards than readers, all read everything and each takes its turn among the
    samples, so that none is idle. Either way an epoch delivers each sample once. Resumed with as
    many ranks, workers and samples per batch, the batches are those of the uninterrupted stream,
    as long as every sample is good: skipping what was delivered does not decode it, so each
    unusable sample shifts the continuation by one.

    Samples that cannot be used are skipped and counted in `skips`, for the current iteration.
    Raises ValueError where a whole pass over the shards has no usable sample.
    """

    def __init__(
        self,
        *,
        shards: Sequence[str],
        decoder: SampleDecoder,
        batch_size: int,
        seed: int,
        endless: bool,
        shuffle_buffer: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        start_batch: int = 0,
        flip: bool = False,
    ) -> None:
        self.shards, self.decoder, self.batch_size, self.seed = list(shards), decoder, batch_size, seed
        self.endless, self.shuffle_buffer, self.flip = endless, shuffle_buffer, flip
        self.rank, self.ranks, self.workers, self.start_batch = rank, ranks, workers, start_batch
        self.skips = SkipCounts(workers=workers)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        assert workers == max(self.workers, 1), "workers must be the DataLoader's num_workers"
        self.skips.reset(worker=worker)
        # A DataLoader takes batches from its workers in turn, beginning with worker 0. So this
        # worker's first batch has this number, and it stands in for the worker that had its turn
        # there when the stream began at 0.
        first = self.start_batch + worker
        reader = Reader(index=(first % workers) * self.ranks + self.rank, count=self.ranks * workers)
        delivered = (first // workers) * self.batch_size
        samples = self._samples(reader, worker, delivered)
        for batch in itertools.count(first, workers):
            chunk = list(itertools.islice(samples, self.batch_size))
            if chunk:
                yield self._collate(chunk, position=(batch * self.ranks + self.rank) * self.batch_size)
            if len(chunk) < self.batch_size:
                return

    def _collate(self, samples: Sequence[Sample], position: int) -> Batch:
        images = torch.stack([sample.image for sample in samples])
        positions = torch.arange(position, position + len(samples))
        if self.flip:
            heads = SampleGenerator(seed=self.seed, keys=positions, purpose="flip").uniform() < 0.5
            images = torch.where(heads[:, None, None, None], images.flip(-1), images)
        captions = [sample.caption for sample in samples if sample.caption is not None]
        labels = [sample.label for sample in samples if sample.label is not None]
        return Batch(
            images=images,
            positions=positions,
            captions=captions or None,
            labels=torch.tensor(labels) if labels else None,
            keys=[sample.key for sample in samples],
        )

    def _samples(self, reader: Reader, worker: int, delivered: int) -> Iterator[Sample]:
        """A reader's decoded samples, from the one after those delivered."""
        for epoch in itertools.count():
            idle = True
            for raw in self._epoch(reader, worker, epoch):
                if delivered:
                    delivered, idle = delivered - 1, False
                    continue
                try:
                    sample = self.decoder(raw)
                except SkippedSampleError as skipped:
                    self.skips.add(skipped.reason, worker=worker)
                    continue
                idle = False
                yield sample
            if idle:
                self._require_usable()
            if not self.endless:
                return

    def _epoch(self, reader: Reader, worker: int, epoch: int) -> Iterator[RawSample]:
        """A reader's share of one epoch, undecoded and in its final order.

        This is the plan of the stream: a pure function of (seed, epoch, reader).
        """
        if not self.endless:
            yield from self._share(self.shards, reader, worker, epoch)
            return
        shards = random.Random(f"{self.seed}/{epoch}/shards").sample(self.shards, len(self.shards))
        rng = random.Random(f"{self.seed}/{epoch}/{reader.index}/samples")
        yield from _shuffle(self._share(shards, reader, worker, epoch), self.shuffle_buffer, rng)

    def _share(self, shards: Sequence[str], reader: Reader, worker: int, epoch: int) -> Iterator[RawSample]:
        """A reader's share of the samples of the shards, in order."""
        by_shard = len(shards) >= reader.count
        # Turns move on with the epoch: with fewer samples than readers, each reader still gets some.
        turn = epoch

        def count_skip(reason: SkipReason) -> None:
            if mine:  # a shard that all readers read is counted by one of them
                self.skips.add(reason, worker=worker)

        for number, shard in enumerate(shards):
            mine = reader.reads(number)
            if by_shard and not mine:
                continue
            for raw in read_shard(shard, count_skip):
                if by_shard or reader.reads(turn):
                    yield raw
                turn += 1

    def _require_usable(self) -> None:
        """Raises ValueError unless some shard has some sample that can be used.

        Called when a reader's share of an epoch had none: others may have got all the good ones.
        """
        reasons: dict[SkipReason, int] = {}

        def count(reason: SkipReason) -> None:
            reasons[reason] = reasons.get(reason, 0) + 1

        for raw in itertools.chain.from_iterable(read_shard(shard, count) for shard in self.shards):
            try:
                self.decoder(raw)
            except SkippedSampleError as skipped:
                count(skipped.reason)
            else:
                return
        listed = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())) or "they are empty"
        raise ValueError(
            f"data.shards: no sample of {len(self.shards)} shards, the first of them {self.shards[0]}, can be "
            f"used: {listed}; captions are looked for in data.caption_key={self.decoder.caption_key}, "
            f"labels in data.label_key={self.decoder.label_key}"
        )


def _shuffle(samples: Iterator[RawSample], buffer: int, rng: random.Random) -> Iterator[RawSample]:
    """Yields every sample once, drawn at random from the `buffer` samples read ahead."""
    held = list(itertools.islice(samples, buffer))
    rng.shuffle(held)
    for sample in samples:
        if not held:
            yield sample
            continue
        drawn = rng.randrange(len(held))
        held[drawn], sample = sample, held[drawn]
        yield sample
    rng.shuffle(held)
    yield from held
