"""The order of a stream: exact cover, no repetition, equal counts, resuming; for any layout."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfdit.data.stream.positions import (
    Bucket,
    EndlessPlan,
    FinitePlan,
    Order,
    PlannedBatch,
    StreamState,
    bucketed,
    rebatched,
)

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)
layouts = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))  # ranks, workers, batch size


def whole(shard_sizes: Sequence[int]) -> Bucket:
    return Bucket((8, 8), shard_sizes)


def endless(
    buckets: Sequence[Bucket], ranks: int, batch_size: int, progress: StreamState | None = None, **kwargs: int
) -> EndlessPlan:
    options = {"seed": 3, "shuffle_shards": 3} | kwargs
    return EndlessPlan(buckets, batch_size=batch_size, ranks=ranks, progress=progress, **options)


def rank_batches(plan: EndlessPlan | FinitePlan, rank: int, workers: int) -> "itertools.chain[PlannedBatch]":
    """A rank's batches as a DataLoader takes them from its workers, in turn."""
    parts = [plan.batches(rank, worker, workers) for worker in range(workers)]
    turns = itertools.zip_longest(*parts)
    return itertools.chain.from_iterable((batch for batch in turn if batch is not None) for turn in turns)


def sequence(plan: EndlessPlan, ranks: int, workers: int, batches: int) -> list[tuple[int, int]]:
    """(position, number) of what all ranks read in their first batches, by position."""
    read = [
        pair
        for rank in range(ranks)
        for batch in itertools.islice(rank_batches(plan, rank, workers), batches)
        for pair in zip(batch.positions, batch.numbers, strict=True)
    ]
    return sorted(read)


@settings(deadline=None, max_examples=50)
@given(sizes, layouts, st.integers(0, 5))
def test_an_epoch_has_every_sample_once_for_any_layout(
    shard_sizes: list[int], layout: tuple[int, int, int], seed: int
) -> None:
    ranks, workers, batch_size = layout
    size = sum(shard_sizes)
    batches = -(-3 * size // (ranks * batch_size))
    plan = endless([whole(shard_sizes)], ranks, batch_size, seed=seed)
    read = sequence(plan, ranks, workers, batches)
    assert [position for position, _ in read] == list(range(len(read)))
    order = [number for _, number in read]
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))
    alone = sequence(endless([whole(shard_sizes)], 1, 1, seed=seed), 1, 1, len(read))
    assert read == alone


@settings(deadline=None, max_examples=25)
@given(sizes, layouts, layouts, st.integers(0, 40), st.integers(0, 40))
def test_interrupted_and_resumed_anywhere_it_is_the_same_stream(
    shard_sizes: list[int],
    first: tuple[int, int, int],
    second: tuple[int, int, int],
    before: int,
    between: int,
) -> None:
    """Two interruptions, the second layout differing from the first in everything."""
    buckets = [whole(shard_sizes)]
    read = sequence(endless(buckets, first[0], first[2]), first[0], first[1], before)
    progress = StreamState(origin=(0,), batch=first[0] * first[2], batches=before)
    for layout in (second, first):
        ranks, workers, batch_size = layout
        progress = rebatched(buckets, progress, ranks * batch_size)
        plan = endless(buckets, ranks, batch_size, progress)
        read += sequence(plan, ranks, workers, between)
        progress = StreamState(progress.origin, progress.batch, progress.batches + between)
    assert read == sequence(endless(buckets, 1, 1), 1, 1, len(read))


@settings(deadline=None, max_examples=50)
@given(sizes, layouts)
def test_a_pass_has_every_sample_once_and_as_many_batches_on_every_rank(
    shard_sizes: list[int], layout: tuple[int, int, int]
) -> None:
    ranks, workers, batch_size = layout
    size = sum(shard_sizes)
    if size < ranks:
        with pytest.raises(
            ValueError, match=rf"data.val_shards has {size} usable samples? for {ranks} ranks"
        ):
            FinitePlan(whole(shard_sizes), batch_size=batch_size, ranks=ranks)
        return
    plan = FinitePlan(whole(shard_sizes), batch_size=batch_size, ranks=ranks)
    read = [list(rank_batches(plan, rank, workers)) for rank in range(ranks)]
    assert {len(batches) for batches in read} == {len(plan)}
    numbers = [number for batches in read for batch in batches for number in batch.numbers]
    assert sorted(numbers) == list(range(size))
    assert all(1 <= len(batch.numbers) <= batch_size + 1 for batches in read for batch in batches)


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=60),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 30),
    st.integers(1, 6),
)
@settings(max_examples=30, deadline=None)
def test_buckets_keep_all_of_it(
    assigned: list[tuple[int, int]], ranks: int, batch_size: int, stop: int, other: int
) -> None:
    """One size a batch; no bucket ahead by more than a batch; resumed, also by another layout, nothing is lost."""
    bucket_of = np.array([bucket for bucket, _ in assigned])
    shard_sizes = np.bincount(sorted(shard for _, shard in assigned), minlength=4).tolist()
    buckets = bucketed([(8, 8), (8, 16), (16, 8)], bucket_of, shard_sizes)
    assert sum(map(len, buckets)) == len(assigned)
    batch, size = ranks * batch_size, len(assigned)
    plan = endless(buckets, ranks, batch_size)
    epochs = 4
    batches = -(-epochs * size // batch)
    per_rank = [list(itertools.islice(rank_batches(plan, rank, 2), batches)) for rank in range(ranks)]
    for same_time in zip(*per_rank, strict=True):
        assert len({planned.bucket.size for planned in same_time}) == 1
    seen = Counter(number for planned in itertools.chain(*per_rank) for number in planned.numbers)
    for bucket in buckets:
        slack = -(-batch // len(bucket)) + 1
        counts = [seen[bucket.number(index)] for index in range(len(bucket))]
        assert max(counts) - min(counts) <= 1
        assert abs(counts[0] - epochs) <= slack
    # Resumed with the same global batch: what would have come.
    again = endless(buckets, ranks, batch_size, StreamState((0,) * len(buckets), batch, stop))
    assert sequence(again, ranks, 3, 5) == sequence(plan, ranks, 1, stop + 5)[stop * batch :]
    # With another: each bucket goes on at the sample where it was.
    progress = rebatched(buckets, StreamState((0,) * len(buckets), batch, stop), other)
    if other != batch:
        assert sum(progress.origin) == stop * batch
        before = Counter(number for _, number in sequence(plan, ranks, 1, stop))
        for bucket, consumed in zip(buckets, progress.origin, strict=True):
            assert sum(before[bucket.number(index)] for index in range(len(bucket))) == consumed


def test_epochs_and_seeds_differ_and_shards_mix() -> None:
    order = Order([50] * 8, seed=0, purpose="a", shuffle_shards=4)
    epochs = [[order(place) for place in range(epoch * 400, (epoch + 1) * 400)] for epoch in range(2)]
    other = Order([50] * 8, seed=1, purpose="a", shuffle_shards=4)
    assert epochs[0] != epochs[1]
    assert epochs[0] != [other(place) for place in range(400)]
    halves = [{number // 50 for number in epochs[0][start : start + 200]} for start in (0, 200)]
    assert [len(half) for half in halves] == [4, 4]  # four shards at a time
    assert halves[0] | halves[1] == set(range(8))
    assert len({number // 50 for number in epochs[0][:40]}) == 4  # and those well mixed


def test_the_order_is_written_in_stone() -> None:
    """A checkpoint of an old version must go on in the same order: a change here is a change of format."""
    order = Order([3, 5, 2], seed=7, purpose="order/0", shuffle_shards=2)
    assert [order(place) for place in range(10)] == [4, 6, 7, 2, 1, 0, 3, 5, 9, 8]
    assert [order(place) for place in range(10, 20)] == [8, 5, 3, 4, 7, 9, 6, 1, 0, 2]


def test_far_places_cost_no_more_than_near_ones() -> None:
    order = Order([10_000] * 200, seed=0, purpose="a", shuffle_shards=4)
    assert 0 <= order(10**12) < 2_000_000
    plan = endless([whole([10])], 1, 1, StreamState((10**9,), 1, 10**12))
    (batch,) = itertools.islice(plan.batches(0, 0, 1), 1)
    assert list(batch.positions) == [10**9 + 10**12]


@pytest.mark.slow
@pytest.mark.parametrize("shard_sizes", [[1], [2], [3, 4], [0, 5, 0, 1], [5000, 5000]])
def test_substitutes_are_others_of_the_shard_at_first(shard_sizes: list[int]) -> None:
    size = sum(shard_sizes)
    for index in range(0, size, -(-size // 4)):
        batch = PlannedBatch(whole(shard_sizes), positions=[0], indices=[index])
        found = list(batch.substitutes(0))
        assert index not in found
        assert len(set(found)) == len(found)
        assert len(found) == size - 1 or size > 1000
        if size > 1000:
            assert len({number < 5000 for number in found[:8]}) == 1
            assert {number < 5000 for number in found} == {True, False}


def test_neighbours_get_different_substitutes() -> None:
    batch = PlannedBatch(whole([1000] * 10), positions=range(20), indices=range(20))
    assert len({next(batch.substitutes(row)) for row in range(20)}) > 15
    # Where their shard is gone as well: then all from one shard, each attempt from another.
    elsewhere = [
        list(itertools.islice((n for n in batch.substitutes(row) if n >= 1000), 3)) for row in range(20)
    ]
    assert len({first for first, *_ in elsewhere}) > 15
    for same_attempt in zip(*elsewhere, strict=True):
        assert len({number // 1000 for number in same_attempt}) == 1


def test_the_shards_that_stand_in_for_shards_differ() -> None:
    batch = PlannedBatch(whole([20] * 100), positions=range(100), indices=range(0, 2000, 20))
    first = [next(n for n in batch.substitutes(row) if n // 20 != row) // 20 for row in range(100)]
    assert len(set(first)) > 50
