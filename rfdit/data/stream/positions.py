"""The plan of a stream: the samples of every batch as a pure function of (seed, position).

Nothing here is read, counted or stored. Every rank and worker computes the same order and takes its
part of it, so any number of them sees the same sequence, and resuming is setting a number.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from rfdit.counted import counted
from rfdit.data.stream.order import MixedOrder, Order
from rfdit.data.stream.sets import SetRate
from rfdit.randomness import randrange

ATTEMPTS, NEAR = 500, 8  # draws of a substitute; the first NEAR come from the sample's own shard


@dataclass(frozen=True)
class Bucket:
    """Samples that are batched together because their images get the same size.

    size: (height, width). members: the samples' numbers, ascending; None is all samples.
    shard_sizes: samples of the bucket in each shard.
    rates: of several sets, whose shards are one after the other; none if all samples come equally often.
    """

    size: tuple[int, int]
    shard_sizes: Sequence[int]
    members: Int[np.ndarray, "_"] | None = None
    rates: Sequence[SetRate] = ()

    @cached_property
    def _size(self) -> int:
        return sum(self.shard_sizes)

    def __len__(self) -> int:
        return self._size

    @cached_property
    def mass(self) -> float:
        """How often samples of this bucket come compared with those of others."""
        return float(sum(self._masses)) if self.rates else len(self)

    @cached_property
    def _sets(self) -> list[Sequence[int]]:
        """The sizes of the shards of each set."""
        ends = list(itertools.accumulate((each.shards for each in self.rates), initial=0))
        return [self.shard_sizes[start:end] for start, end in itertools.pairwise(ends)]

    @cached_property
    def _masses(self) -> list[Fraction]:
        return [each.rate * sum(sizes) for each, sizes in zip(self.rates, self._sets)]

    def order(self, *, seed: int, purpose: str, shuffle_shards: int) -> Callable[[int], int]:
        """The endless order of the bucket's samples: the index at each place."""
        if not self.rates:
            return Order(self.shard_sizes, seed=seed, purpose=purpose, shuffle_shards=shuffle_shards)
        orders = [
            Order(sizes, seed=seed, purpose=f"{purpose}/set/{n}", shuffle_shards=shuffle_shards)
            for n, sizes in enumerate(self._sets)
        ]
        return MixedOrder(orders, self._masses)

    @cached_property
    def _ends(self) -> Int[np.ndarray, "_"]:
        return np.cumsum(self.shard_sizes)

    def shard_of(self, index: int) -> tuple[int, int]:
        """(first index, number of samples) in this bucket of the shard that an index lies in."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return int(self._ends[shard]) - self.shard_sizes[shard], self.shard_sizes[shard]

    def number(self, index: int) -> int:
        """The sample at an index within the bucket."""
        return index if self.members is None else int(self.members[index])


def bucketed(
    sizes: Sequence[tuple[int, int]],
    assigned: Int[np.ndarray, "n"],
    shard_sizes: Sequence[int],
    rates: Sequence[SetRate] = (),
) -> list[Bucket]:
    """The buckets that have samples. assigned: the number of each sample's size."""
    shard_of = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    found = []
    for n, size in enumerate(sizes):
        members = np.flatnonzero(assigned == n)
        if len(members):
            counts = np.bincount(shard_of[members], minlength=len(shard_sizes))
            found.append(Bucket(size, counts.tolist(), members, rates))
    return found


@dataclass(frozen=True)
class PlannedBatch:
    """One batch of one rank, before it is read.

    positions: the samples' positions in the stream of all ranks; each occurs once in a run.
    indices: the samples' indices in the bucket.
    """

    bucket: Bucket
    positions: Sequence[int]
    indices: Sequence[int]

    @property
    def numbers(self) -> list[int]:
        """The samples' numbers in the source."""
        return [self.bucket.number(index) for index in self.indices]

    def substitutes(self, row: int) -> Iterator[int]:
        """Numbers to try in turn in place of a bad sample: first of its own shard, then of any.

        They are keyed by the sample's index, so that neighbouring bad samples get different ones. The
        other shards are keyed by its shard: all samples of a missing shard need the same few shards.
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
        """The same as `Bucket.shard_of`, for a shard drawn by its size; `first` is the key of the draw."""
        return self.bucket.shard_of(
            randrange(len(self.bucket), seed=first, purpose=f"substitute_shard/{attempt}")
        )


@runtime_checkable
class Plan(Protocol):
    """The batches of a stream."""

    @property
    def substitutes(self) -> bool:
        """True if a bad sample is replaced, False if it is left out."""
        ...

    @property
    def in_step(self) -> bool:
        """True if all ranks must have the same number of batches."""
        ...

    def batches(self, rank: int, start: int, step: int) -> Iterator[PlannedBatch]:
        """The batches start, start + step, ... of a rank."""
        ...


@dataclass(frozen=True)
class StreamState:
    """Progress in a stream: everything that a restart needs, equal on every rank.

    origin: samples of each bucket consumed before the size of the global batch last changed.
    batch: samples in a global batch since then. batches: global batches consumed since then.
    """

    origin: tuple[int, ...]
    batch: int
    batches: int = 0


class EndlessPlan:
    """Epoch after epoch, each in an order of its own, in global batches of ranks x batch_size samples.

    The n-th global batch is the same for any number of ranks and workers; rank r takes its r-th part.
    A batch may hold the end of one epoch and the beginning of the next, so that nothing is ever left
    over. With several buckets, each has its own epochs, and turns in proportion to its samples: at no
    time is one ahead of the others by more than a batch.

    progress: the point at which to start; see `StreamState`.
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
        progress: StreamState | None = None,
    ) -> None:
        self._buckets = buckets
        self._orders = [
            bucket.order(seed=seed, purpose=f"order/{n}", shuffle_shards=shuffle_shards)
            for n, bucket in enumerate(buckets)
        ]
        self._batch_size = batch_size
        self.progress = progress or StreamState(origin=(0,) * len(buckets), batch=batch_size * ranks)
        assert self.progress.batch == batch_size * ranks

    def batches(self, rank: int, start: int, step: int) -> Iterator[PlannedBatch]:
        progress = self.progress
        offset = rank * self._batch_size  # of this rank in a global batch
        first = progress.batches + start
        due = itertools.islice(turns(self._buckets, progress, first), 0, None, step)
        for n, (bucket, place) in zip(itertools.count(first, step), due):
            position = sum(progress.origin) + n * progress.batch + offset
            order = self._orders[bucket]
            yield PlannedBatch(
                bucket=self._buckets[bucket],
                positions=range(position, position + self._batch_size),
                indices=[order(place + offset + row) for row in range(self._batch_size)],
            )


def turns(buckets: Sequence[Bucket], progress: StreamState, first: int = 0) -> Iterator[tuple[int, int]]:
    """(bucket, place in its order) of the global batches from number `first` since the origin on.

    The j-th turn of a bucket of mass N, its number of samples, is at time (j + 1/2) / N, which spaces its turns evenly.
    """
    if len(buckets) == 1:  # no need to count up to the first
        for n in itertools.count(first):
            yield 0, progress.origin[0] + n * progress.batch
    yield from itertools.islice(_merged(buckets, progress), first, None)


def _merged(buckets: Sequence[Bucket], progress: StreamState) -> Iterator[tuple[int, int]]:
    waiting = [(0.5 / bucket.mass, n, 0) for n, bucket in enumerate(buckets) if len(bucket)]
    heapq.heapify(waiting)
    while True:
        _, bucket, turn = waiting[0]
        yield bucket, progress.origin[bucket] + turn * progress.batch
        heapq.heapreplace(waiting, ((turn + 1.5) / buckets[bucket].mass, bucket, turn + 1))


def rebatched(buckets: Sequence[Bucket], progress: StreamState, batch: int) -> StreamState:
    """The same progress for global batches of another size; no sample is repeated or lost."""
    if progress.batch == batch:
        return progress
    consumed = list(progress.origin)
    for _, (bucket, _) in zip(range(progress.batches), turns(buckets, progress)):
        consumed[bucket] += progress.batch
    return StreamState(origin=tuple(consumed), batch=batch)


class FinitePlan:
    """One pass in order: every sample once, and the same number of batches on every rank.

    Full global batches have ranks x batch_size samples. The remainder is divided among the ranks, equal to
    within one sample, as a smaller last batch. If it has fewer samples than ranks, they join the last full
    batch, one each on the first ranks.

    Raises ValueError if there are fewer samples than ranks.
    """

    substitutes = False

    def __init__(self, bucket: Bucket, *, batch_size: int, ranks: int) -> None:
        if len(bucket) < ranks:
            raise ValueError(
                f"data.val_shards has {counted(len(bucket), 'usable sample')} for {ranks} ranks; give "
                "at least one for each"
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
