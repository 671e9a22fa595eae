"""Every sample once per epoch, whoever reads; positions; resuming; bad samples and shards."""

import itertools
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from rfdit.batch import Batch
from rfdit.data.decode import SampleDecoder
from rfdit.data.shards import expand_shards
from rfdit.data.stream import TarStream
from rfdit.randomness import SampleGenerator

Files = dict[str, str | bytes]
WriteNumbered = Callable[[Sequence[int]], list[str]]
SIZES = [7, 3, 12, 5, 1]  # uneven on purpose


def stream(shards: Sequence[str], **settings: object) -> TarStream:
    defaults = {
        "decoder": SampleDecoder(resolution=8, label_key="cls"),
        "batch_size": 2,
        "seed": 0,
        "endless": True,
        "shuffle_buffer": 4,
    }
    return TarStream(shards=shards, **defaults | settings)


def loaded(source: TarStream, **settings: object) -> Iterator[Batch]:
    return iter(DataLoader(source, batch_size=None, num_workers=source.workers, **settings))


def taken(source: TarStream, batches: int) -> list[Batch]:
    return list(itertools.islice(loaded(source), batches))


def numbers(batches: Sequence[Batch]) -> list[int]:
    return [int(key) for batch in batches for key in batch.keys or []]


def assert_equal(mine: Sequence[Batch], theirs: Sequence[Batch]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.positions, b.positions)
        assert (a.captions, a.keys) == (b.captions, b.keys)


def share(
    shards: Sequence[str], rank: int, ranks: int, worker: int, workers: int, **settings: object
) -> list[Batch]:
    """What one worker of one rank delivers in one pass, without starting processes."""
    source = stream(shards, endless=False, rank=rank, ranks=ranks, workers=workers, **settings)
    info = torch.utils.data._utils.worker.WorkerInfo(id=worker, num_workers=workers, seed=0, dataset=source)
    torch.utils.data._utils.worker._worker_info = info
    try:
        return list(source)
    finally:
        torch.utils.data._utils.worker._worker_info = None


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 8)])
def test_a_pass_delivers_every_sample_once(write_numbered: WriteNumbered, ranks: int, workers: int) -> None:
    shards = write_numbered(SIZES)
    parts = [share(shards, r, ranks, w, workers) for r in range(ranks) for w in range(workers)]
    assert sorted(n for part in parts for n in numbers(part)) == list(range(sum(SIZES)))
    positions = torch.cat([batch.positions for part in parts for batch in part])
    assert len(positions.unique()) == sum(SIZES)
    if ranks * workers > len(SIZES):  # nobody is idle as long as there are samples
        assert sum(map(bool, parts)) == min(ranks * workers, sum(SIZES))


def test_an_endless_stream_delivers_every_sample_once_in_each_epoch(write_numbered: WriteNumbered) -> None:
    size = sum(SIZES)
    order = numbers(taken(stream(write_numbered(SIZES), batch_size=1), 3 * size))
    epochs = [order[:size], order[size : 2 * size], order[2 * size :]]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_the_seed_decides_the_order(write_numbered: WriteNumbered) -> None:
    shards = write_numbered(SIZES)
    assert_equal(taken(stream(shards, seed=5), 9), taken(stream(shards, seed=5), 9))
    assert numbers(taken(stream(shards, seed=5), 9)) != numbers(taken(stream(shards, seed=6), 9))


def test_a_single_pass_keeps_the_order_and_its_last_batch_is_smaller(write_numbered: WriteNumbered) -> None:
    batches = list(stream(write_numbered([2, 3]), endless=False))
    assert numbers(batches) == list(range(5))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(5))


def test_a_batch_carries_all_of_its_samples(write_numbered: WriteNumbered) -> None:
    (batch,) = list(stream(write_numbered([3]), endless=False, batch_size=3))
    assert batch.captions == ["number 0", "number 1", "number 2"]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.images.dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 2])
def test_positions_are_places_in_the_stream_of_all_ranks(write_numbered: WriteNumbered, workers: int) -> None:
    shards = write_numbered(SIZES)
    ranks = [taken(stream(shards, rank=r, ranks=2, workers=workers), 6) for r in range(2)]
    for n, batches in enumerate(zip(*ranks, strict=True)):
        for rank, batch in enumerate(batches):
            assert batch.positions.tolist() == [(n * 2 + rank) * 2, (n * 2 + rank) * 2 + 1]


@pytest.mark.parametrize(("workers", "start"), [(0, 1), (0, 37), (2, 5), (2, 6), (3, 16)])
def test_resuming_continues_bit_equal(write_numbered: WriteNumbered, workers: int, start: int) -> None:
    """Across the ends of epochs too, and wherever in the workers' turns the stream stopped."""
    shards = write_numbered(SIZES)
    settings = {"workers": workers, "rank": 1, "ranks": 2, "flip": True}
    whole = taken(stream(shards, **settings), start + 8)
    assert_equal(taken(stream(shards, start_batch=start, **settings), 8), whole[start:])


def test_flips_belong_to_positions(write_numbered: WriteNumbered) -> None:
    (batch,) = taken(stream(write_numbered([40]), batch_size=40, flip=True, seed=3), 1)
    (plain,) = taken(stream(write_numbered([40]), batch_size=40, seed=3), 1)
    heads = SampleGenerator(seed=3, keys=batch.positions, purpose="flip").uniform() < 0.5
    assert 8 < heads.sum() < 32
    assert torch.equal(batch.images[heads], plain.images[heads].flip(-1))
    assert torch.equal(batch.images[~heads], plain.images[~heads])


def damaged(make_sample: Callable[[int], Files]) -> list[Files]:
    """Ten samples, four of them bad."""
    samples = [make_sample(number) for number in range(10)]
    samples[1]["png"] = b"no image"
    samples[3]["png"] = samples[3]["png"][:45]
    del samples[5]["txt"]
    samples[6]["txt"] = b" "
    return samples


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_skipped_and_counted(
    make_sample: Callable[[int], Files], write_shard: Callable[..., str], workers: int
) -> None:
    source = stream([write_shard("a.tar", damaged(make_sample))], endless=False, workers=workers)
    assert sorted(numbers(list(loaded(source)))) == [0, 2, 4, 7, 8, 9]
    assert source.skips.total() == {"corrupt_image": 2, "missing_caption": 1, "empty_caption": 1}


def test_counts_reach_the_main_process_from_spawned_workers(
    make_sample: Callable[[int], Files], write_shard: Callable[..., str]
) -> None:
    source = stream([write_shard("a.tar", damaged(make_sample))], endless=False, workers=1)
    spawn = multiprocessing.get_context("spawn")
    assert len(numbers(list(loaded(source, multiprocessing_context=spawn)))) == 6
    assert sum(source.skips.total().values()) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_shards_are_skipped_and_counted_once(write_numbered: WriteNumbered, workers: int) -> None:
    good, broken = write_numbered([4, 6])
    with tarfile.open(broken) as tar:
        third_image = tar.getmember("000006.png").offset_data
    os.truncate(broken, third_image + 20)
    source = stream([good, broken, "nowhere.tar", "pipe:false"], endless=False, workers=workers)
    assert sorted(numbers(list(loaded(source)))) == [0, 1, 2, 3, 4, 5]
    # What is left of the third sample has no caption.
    assert source.skips.total() == {"missing_caption": 1, "truncated_tar": 1, "unreadable_shard": 2}


def test_a_bad_shard_that_all_readers_meet_is_counted_once(write_numbered: WriteNumbered) -> None:
    source = stream([*write_numbered([6]), "nowhere.tar"], endless=False, workers=3)
    assert sorted(numbers(list(loaded(source)))) == list(range(6))
    assert source.skips.total() == {"unreadable_shard": 1}


def test_pipes_are_read(write_numbered: WriteNumbered) -> None:
    (shard,) = write_numbered([5])
    assert numbers(list(stream([f"pipe:cat {shard}"], endless=False))) == list(range(5))


@pytest.mark.parametrize("endless", [True, False])
def test_nothing_usable_is_an_error_that_says_why(write_numbered: WriteNumbered, endless: bool) -> None:
    source = stream(
        [*write_numbered([3]), "nowhere.tar"],
        endless=endless,
        decoder=SampleDecoder(resolution=8, caption_key="json.caption"),
    )
    expected = (
        r"no sample of 2 shards.* 3 missing_caption, 1 unreadable_shard; .*data.caption_key=json.caption"
    )
    with pytest.raises(ValueError, match=expected):
        next(iter(source))


def test_a_reader_whose_share_is_bad_waits_for_better_epochs(write_numbered: WriteNumbered) -> None:
    """Two readers, a good and a bad shard: nobody fails, and each gets the good shard in its turn."""
    shards = [*write_numbered([3]), "nowhere.tar"]
    for rank in range(2):
        assert set(numbers(taken(stream(shards, rank=rank, ranks=2), 6))) == {0, 1, 2}


def test_fewer_samples_than_readers(write_numbered: WriteNumbered) -> None:
    shards = write_numbered([3])
    for rank in range(4):
        assert set(numbers(taken(stream(shards, rank=rank, ranks=4), 6))) == {0, 1, 2}


@pytest.mark.parametrize(("data", "count"), [("cc12m", 32), ("emoji", 1851)])
def test_real_shards_are_read_whole(assets: Path, data: str, count: int) -> None:
    source = stream(
        expand_shards(str(assets / "data" / data)),
        decoder=SampleDecoder(resolution=64),
        endless=False,
        batch_size=16,
        workers=2,
    )
    batches = list(loaded(source))
    keys = [key for batch in batches for key in batch.keys or []]
    assert len(keys) == len(set(keys)) == count
    assert all(batch.images.shape[1:] == (3, 64, 64) for batch in batches)
    assert source.skips.total() == {}
