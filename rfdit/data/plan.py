"""Which sample is read when: the order of a stream as a pure function of (seed, place).

Nothing here is read, counted or remembered. Every rank and worker computes the same order and takes
its part of it, so any number of them sees the same sequence, and a restart is a number.
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from rfdit.data.order import Order
from rfdit.randomness import randrange

ATTEMPTS, NEAR = 500, 8  # draws for a substitute, and how many of them from the sample's own shard


@dataclass(frozen=True)
class Bucket:
    """Samples that are batched together, since their images get the same size.

    size: (height, width). members: the samples' numbers, ascending; None stands for all of them.
    shard_sizes: how many of each shard.
    """

    size: tuple[int, int]
    shard_sizes: Sequence[int]
    members: Int[np.ndarray, "_"] | None = None

    @cached_property
    def _size(self) -> int:
        return sum(self.shard_sizes)

    def __len__(self) -> int:
        return self._size

    @cached_property
    def _ends(self) -> Int[np.ndarray, "_"]:
        return np.cumsum(self.shard_sizes)

    def shard_of(self, index: int) -> tuple[int, int]:
        """(first index, number of samples) of the shard, as far as it is in this bucket, that has an index."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return int(self._ends[shard]) - self.shard_sizes[shard], self.shard_sizes[shard]

    def number(self, index: int) -> int:
        """The sample at an index within the bucket."""
        return index if self.members is None else int(self.members[index])


def bucketed(
    sizes: Sequence[tuple[int, int]], assigned: Int[np.ndarray, "n"], shard_sizes: Sequence[int]
) -> list[Bucket]:
    """The buckets that have samples; assigned: the number of each sample's size."""
    shard_of = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    found = []
    for n, size in enumerate(sizes):
        members = np.flatnonzero(assigned == n)
        if len(members):
            counts = np.bincount(shard_of[members], minlength=len(shard_sizes))
            found.append(Bucket(size, counts.tolist(), members))
    return found


@dataclass(frozen=True)
class PlannedBatch:
    """One batch of one rank, before it is read.

    positions: the samples' places in the stream of all ranks; nothing else ever has the same.
    indices: the samples, as indices of the bucket.
    """

    bucket: Bucket
    positions: Sequence[int]
    indices: Sequence[int]

    @property
    def numbers(self) -> list[int]:
        """The samples' numbers in the source."""
        return [self.bucket.number(index) for index in self.indices]

    def substitutes(self, row: int) -> Iterator[int]:
        """Numbers to try in turn for a sample that cannot be used: of its shard at first, then of any.

        Drawn from the sample's own index, so that bad samples that lie side by side get different ones.
        The other shards are drawn from its shard: of one that is gone, all samples need the same few.
        """
        index = self.indices[row]
        shard = self.bucket.shard_of(index)
        tried = {index}
        for attempt in range(ATTEMPTS):
            start, size = shard if attempt < NEAR else self._other_shard(shard[0], attempt)
            candidate = start + randrange(size, seed=index, purpose=f"substitute/{attempt}")
            if candidate not in tried:
                tried.add(candidate)
                yield self.bucket.number(candidate)

    def _other_shard(self, first: int, attempt: int) -> tuple[int, int]:
        """As `Bucket.shard_of`, of a shard drawn for the one with this first index; the larger, the likelier."""
        return self.bucket.shard_of(
            randrange(len(self.bucket), seed=first, purpose=f"substitute_shard/{attempt}")
        )


@runtime_checkable
class Plan(Protocol):
    """The batches of a stream."""

    @property
    def substitutes(self) -> bool:
        """Whether a sample that cannot be used is replaced, or left out."""
        ...

    @property
    def in_step(self) -> bool:
        """Whether other ranks rely on this one's having as many batches as they."""
        ...

    def batches(self, rank: int, start: int, step: int) -> Iterator[PlannedBatch]:
        """A rank's batches number start, start + step, ..."""
        ...


@dataclass(frozen=True)
class Progress:
    """How far a stream has been consumed: all that a restart needs, equal on every rank.

    origin: samples consumed of each bucket when the size of the global batch was last changed.
    batch: samples in a global batch since then. batches: how many were consumed since then.
    """

    origin: tuple[int, ...]
    batch: int
    batches: int = 0


class EndlessPlan:
    """Epoch after epoch, each in an order of its own, in global batches of ranks x batch_size samples.

    The n-th global batch is the same for any number of ranks and workers; rank r takes its r-th part.
    A batch may hold the end of one epoch and the beginning of the next, so that nothing is ever left
    over. With several buckets, each has epochs of its own, and a bucket's turn comes as often as its
    share of the samples says: at no time is one further than the others by more than a batch.

    progress: where it starts; see `Progress`.
    """

    substitutes = in_step = True

    def __init__(
        self,
        buckets: Sequence[Bucket],
        *,
        seed: int,
        shuffle_shards: int,
        batch_size: int,
        ranks: int,
        progress: Progress | None = None,
    ) -> None:
        self._buckets = buckets
        self._orders = [
            Order(bucket.shard_sizes, seed=seed, purpose=f"order/{n}", shuffle_shards=shuffle_shards)
            for n, bucket in enumerate(buckets)
        ]
        self._batch_size = batch_size
        self.progress = progress or Progress(origin=(0,) * len(buckets), batch=batch_size * ranks)
        assert self.progress.batch == batch_size * ranks

    def batches(self, rank: int, start: int, step: int) -> Iterator[PlannedBatch]:
        progress = self.progress
        mine = rank * self._batch_size
        first = progress.batches + start
        due = itertools.islice(turns(self._buckets, progress, first), 0, None, step)
        for n, (bucket, place) in zip(itertools.count(first, step), due):
            position = sum(progress.origin) + n * progress.batch + mine
            order = self._orders[bucket]
            yield PlannedBatch(
                bucket=self._buckets[bucket],
                positions=range(position, position + self._batch_size),
                indices=[order(place + mine + row) for row in range(self._batch_size)],
            )


def turns(buckets: Sequence[Bucket], progress: Progress, first: int = 0) -> Iterator[tuple[int, int]]:
    """(bucket, place of its order) of each global batch from the first-th since the origin on.

    The j-th turn of a bucket with N samples is at time (j + 1/2) / N, as evenly as can be.
    """
    if len(buckets) == 1:  # no need to count up to the first
        for n in itertools.count(first):
            yield 0, progress.origin[0] + n * progress.batch
    yield from itertools.islice(_merged(buckets, progress), first, None)


def _merged(buckets: Sequence[Bucket], progress: Progress) -> Iterator[tuple[int, int]]:
    waiting = [(0.5 / len(bucket), n, 0) for n, bucket in enumerate(buckets) if len(bucket)]
    heapq.heapify(waiting)
    while True:
        _, bucket, turn = waiting[0]
        yield bucket, progress.origin[bucket] + turn * progress.batch
        heapq.heapreplace(waiting, ((turn + 1.5) / len(buckets[bucket]), bucket, turn + 1))


def rebatched(buckets: Sequence[Bucket], progress: Progress, batch: int) -> Progress:
    """The same progress for global batches of another size: not a sample is repeated or lost."""
    if progress.batch == batch:
        return progress
    consumed = list(progress.origin)
    for _, (bucket, _) in zip(range(progress.batches), turns(buckets, progress)):
        consumed[bucket] += progress.batch
    return Progress(origin=tuple(consumed), batch=batch)


class FinitePlan:
    """One pass in order: every sample once, and the same number of batches on every rank.

    Global batches of ranks x batch_size samples, as long as there are as many. Of the remainder each
    rank gets an equal share, give or take one sample, in a smaller last batch; if there are fewer
    than ranks, they join the last full batch, one each on the first ranks.

    Raises ValueError if there are fewer samples than ranks.
    """

    substitutes = False

    def __init__(self, bucket: Bucket, *, batch_size: int, ranks: int) -> None:
        if len(bucket) < ranks:
            raise ValueError(
                f"data.val_shards has {len(bucket)} usable samples for {ranks} ranks; give one for each at least"
            )
        self.in_step = ranks > 1
        self._bucket, self._batch_size, self._ranks = bucket, batch_size, ranks
        self._full, self._rest = divmod(len(bucket), batch_size * ranks)
        self._joined = self._full > 0 and 0 < self._rest < ranks

    def __len__(self) -> int:
        """Batches on each rank."""
        return self._full + (self._rest > 0 and not self._joined)

    def batches(self, rank: int, start: int, step: int) -> Iterator[PlannedBatch]:
        for n in range(start, len(self), step):
            first = (n * self._ranks + rank) * self._batch_size
            indices = list(range(first, first + self._batch_size)) if n < self._full else []
            if n == len(self) - 1:
                rest = np.arange(self._full * self._ranks * self._batch_size, len(self._bucket))
                indices += np.array_split(rest, self._ranks)[rank].tolist()
            yield PlannedBatch(bucket=self._bucket, positions=indices, indices=indices)
