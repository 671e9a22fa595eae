"""Batches out of plans and sources: layouts, positions, resuming, bad samples and shards."""

import itertools
import multiprocessing
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from rfdit.batch import Batch
from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.latents.decoder import LatentDecoder
from rfdit.data.shards import expand_shards
from rfdit.data.stream.dataset import Stream
from rfdit.data.stream.positions import Bucket, EndlessPlan, FinitePlan, StreamState
from rfdit.data.tar.source import TarReader, TarSource
from rfdit.randomness import SampleGenerator

Files = dict[str, str | bytes]
WriteNumbered = Callable[[Sequence[int]], list[str]]
Opener = Callable[[Sequence[str]], TarSource]
SIZES = [7, 3, 12, 5, 1]  # uneven on purpose


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    monkeypatch.setattr("rfdit.data.tar.remote.PAUSES", ())  # what fails here fails again
    return lambda shards: TarReader(cache=str(tmp_path / "cache"))(shards, filters=Filters())


def stream(
    source: TarSource, *, batch_size: int = 2, ranks: int = 1, start: int = 0, finite: bool = False,
    side: int = 8, **settings: object,
) -> Stream:  # fmt: skip
    bucket = Bucket((side, side), source.shard_sizes)
    progress = StreamState((0,), batch_size * ranks, start)
    plan: FinitePlan | EndlessPlan
    if finite:
        plan = FinitePlan(bucket, batch_size=batch_size, ranks=ranks)
    else:
        seed = settings.get("seed", 0)
        assert isinstance(seed, int)
        plan = EndlessPlan(
            [bucket], seed=seed, shuffle_shards=4, batch_size=batch_size, ranks=ranks, progress=progress
        )
    defaults = {"decoder": SampleDecoder(label_key="cls"), "seed": 0}
    return Stream(source=source, plan=plan, **defaults | settings)


def loaded(source: Stream, workers: int = 0, **settings: object) -> Iterator[Batch]:
    return iter(DataLoader(source, batch_size=None, num_workers=workers, **settings))


def taken(source: Stream, batches: int, workers: int = 0) -> list[Batch]:
    return list(itertools.islice(loaded(source, workers), batches))


def skipped(batches: Sequence[Batch]) -> Counter[str]:
    return sum((Counter(batch.skipped) for batch in batches), Counter())


def numbers(batches: Sequence[Batch]) -> list[int]:
    return [int(key) for batch in batches for key in batch.keys or []]


def assert_equal(mine: Sequence[Batch], theirs: Sequence[Batch]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.positions, b.positions)
        assert (a.captions, a.keys) == (b.captions, b.keys)


def test_an_endless_stream_delivers_every_sample_once_in_each_epoch(
    write_numbered: WriteNumbered, opened: Opener
) -> None:
    size = sum(SIZES)
    order = numbers(taken(stream(opened(write_numbered(SIZES)), batch_size=1), 3 * size))
    epochs = [order[:size], order[size : 2 * size], order[2 * size :]]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(
    write_numbered: WriteNumbered, opened: Opener, workers: int
) -> None:
    source = opened(write_numbered(SIZES))
    alone = taken(stream(source, flip=True), 30)
    assert_equal(taken(stream(source, flip=True), 30, workers), alone)


def test_two_ranks_share_the_batches_of_one(write_numbered: WriteNumbered, opened: Opener) -> None:
    source = opened(write_numbered(SIZES))
    whole = taken(stream(source, batch_size=4), 20)
    ranks = [taken(stream(source, rank=rank, ranks=2), 20) for rank in range(2)]
    for n, batch in enumerate(whole):
        assert numbers([batch]) == numbers([ranks[0][n], ranks[1][n]])
        assert torch.equal(batch.positions, torch.cat([ranks[0][n].positions, ranks[1][n].positions]))


def test_a_pass_keeps_the_order_and_its_last_batch_is_smaller(
    write_numbered: WriteNumbered, opened: Opener
) -> None:
    batches = list(stream(opened(write_numbered([2, 3])), finite=True))
    assert numbers(batches) == list(range(5))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(5))


def test_a_batch_carries_all_of_its_samples(write_numbered: WriteNumbered, opened: Opener) -> None:
    (batch,) = list(stream(opened(write_numbered([3])), finite=True, batch_size=3))
    assert batch.captions == ["number 0", "number 1", "number 2"]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.images.dtype == torch.uint8


@pytest.mark.parametrize(("before", "after", "start"), [(0, 2, 1), (2, 0, 37), (2, 3, 6), (3, 2, 16)])
def test_resuming_continues_bit_equal_with_any_workers(
    write_numbered: WriteNumbered, opened: Opener, before: int, after: int, start: int
) -> None:
    source = opened(write_numbered(SIZES))
    settings = {"rank": 1, "ranks": 2, "flip": True}
    whole = taken(stream(source, **settings), start + 8, before)
    assert_equal(taken(stream(source, start=start, **settings), 8, after), whole[start:])


def test_flips_belong_to_positions(write_numbered: WriteNumbered, opened: Opener) -> None:
    source = opened(write_numbered([40]))
    (batch,) = taken(stream(source, batch_size=40, flip=True, seed=3), 1)
    (plain,) = taken(stream(source, batch_size=40, seed=3), 1)
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
def test_a_pass_leaves_bad_samples_out_and_counts_them(
    make_sample: Callable[[int], Files], write_shard: Callable[..., str], opened: Opener, workers: int
) -> None:
    source = stream(opened([write_shard("a.tar", damaged(make_sample))]), finite=True)
    batches = list(loaded(source, workers))
    assert numbers(batches) == [0, 2, 4, 7, 8, 9]
    assert skipped(batches) == {"corrupt_image": 2, "missing_caption": 1, "empty_caption": 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_training_replaces_bad_samples_and_leaves_the_others_in_place(
    make_sample: Callable[[int], Files], write_shard: Callable[..., str], opened: Opener, workers: int
) -> None:
    good = opened([write_shard("good.tar", map(make_sample, range(10)))])
    bad = stream(opened([write_shard("bad.tar", damaged(make_sample))]), batch_size=5)
    found = taken(bad, 4, workers)
    for theirs, mine in zip(taken(stream(good, batch_size=5), 4), found, strict=True):
        assert torch.equal(mine.positions, theirs.positions)
        for got, expected in zip(numbers([mine]), numbers([theirs]), strict=True):
            assert got == expected if expected not in (1, 3, 5, 6) else got in (0, 2, 4, 7, 8, 9)
    # Those of the batches that were taken, whatever the workers have read ahead.
    assert skipped(found) == {"corrupt_image": 4, "missing_caption": 2, "empty_caption": 2}


def test_ranks_stay_in_step_where_one_has_only_bad_samples(
    make_sample: Callable[[int], Files], write_shard: Callable[..., str], opened: Opener
) -> None:
    samples = [make_sample(number) for number in range(8)]
    for number in (2, 3):
        samples[number]["png"] = b"no image"
    shard = write_shard("a.tar", samples)
    ranks = [list(stream(opened([shard]), finite=True, rank=rank, ranks=2)) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [2, 2]
    assert numbers(ranks[0]) == [0, 1, 4, 5]
    assert numbers(ranks[1])[1:] == [6, 7]
    assert numbers(list(stream(opened([shard]), finite=True))) == [0, 1, 4, 5, 6, 7]  # alone: no waiting


@pytest.mark.slow
def test_counts_reach_the_main_process_from_spawned_workers(
    make_sample: Callable[[int], Files], write_shard: Callable[..., str], opened: Opener
) -> None:
    source = stream(opened([write_shard("a.tar", damaged(make_sample))]), finite=True)
    batches = list(loaded(source, 1, multiprocessing_context=multiprocessing.get_context("spawn")))
    assert (len(numbers(batches)), skipped(batches).total()) == (6, 4)


def test_batches_without_a_sample_leave_their_counts_to_others(
    make_sample: Callable[[int], Files], write_shard: Callable[..., str], opened: Opener
) -> None:
    samples = [make_sample(number) for number in range(8)]
    for number in (0, 1, 4, 6, 7):
        samples[number]["png"] = b"no image"
    batches = list(stream(opened([write_shard("a.tar", samples)]), finite=True))
    assert [batch.keys for batch in batches] == [["000002", "000003"], ["000005"]]
    assert [batch.skipped for batch in batches] == [{"corrupt_image": 2}, {"corrupt_image": 3}]


def test_bad_shards_are_counted_once_when_they_are_opened(
    write_numbered: WriteNumbered, opened: Opener
) -> None:
    good, broken = write_numbered([4, 6])
    with tarfile.open(broken) as tar:
        third_image = tar.getmember("000006.png").offset_data
    os.truncate(broken, third_image + 20)
    shards = [good, broken, "nowhere.tar", "pipe:false"]
    with pytest.warns(
        UserWarning, match=r"2 of 4 shards cannot be read, the first is nowhere\.tar: No such file"
    ):
        source = opened(shards)
    assert numbers(list(stream(source, finite=True))) == [0, 1, 2, 3, 4, 5]
    assert source.skipped() == {"truncated_tar": 1, "unreadable_shard": 2}
    assert opened(shards).skipped() == source.skipped()  # remembered or not


def test_a_shard_that_breaks_later_is_counted_sample_by_sample(
    write_numbered: WriteNumbered, opened: Opener
) -> None:
    shards = write_numbered([4, 6])
    source = opened(shards)
    os.truncate(shards[1], 3000)
    os.unlink(shards[0])
    broken = stream(source, finite=True)
    expected = (
        "none of 10 samples can be used: 6 truncated_tar, 4 unreadable_shard; the first: unreadable_shard: "
    )
    with pytest.raises(ValueError, match=expected + r".*000\.tar"):
        list(broken)


def test_a_bad_sample_is_named_with_its_shard(write_numbered: WriteNumbered, opened: Opener) -> None:
    """By its key, or its number in the shard if there is nothing left of it; images and latents alike."""
    shards = write_numbered([2])
    missing_latents = stream(opened(shards), decoder=LatentDecoder(autoencoder={}))
    with pytest.raises(
        ValueError, match=r"by LatentDecoder\(text.* the first: missing_latent: 00000\d of /.*000\.tar: "
    ):
        next(iter(missing_latents))
    source = opened(shards)
    os.truncate(shards[0], 1000)
    with pytest.raises(ValueError, match=r"the first: truncated_tar: sample 0 of /.*000\.tar$"):
        list(stream(source, finite=True))


def test_a_changed_shard_is_read_anew(write_numbered: WriteNumbered, opened: Opener) -> None:
    (shard,) = write_numbered([5])
    assert opened([shard]).shard_sizes == [5]
    (shard,) = write_numbered([9])
    assert opened([shard]).shard_sizes == [9]


def test_pipes_are_read(write_numbered: WriteNumbered, opened: Opener) -> None:
    (shard,) = write_numbered([5])
    assert numbers(list(stream(opened([f"pipe:cat {shard}"]), finite=True))) == list(range(5))


def test_compressed_shards_are_an_error(tmp_path: Path, opened: Opener) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(ValueError, match=r"data\.shards: .*a\.tar\.gz is compressed with gzip"):
        opened([str(tmp_path / "a.tar.gz")])


@pytest.mark.slow
def test_a_run_ends_where_nearly_all_samples_stay_bad(
    write_numbered: WriteNumbered, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_numbered([60, 1])
    source = opened(shards)
    os.unlink(shards[0])
    monkeypatch.setattr("rfdit.data.stream.dataset.WINDOW", 30)
    with pytest.raises(
        ValueError, match=r"data\.shards: \d+ of the last 30 samples could not be .*unreadable"
    ):
        taken(stream(source, batch_size=10), 30)


def test_nothing_usable_is_an_error_that_says_why(write_numbered: WriteNumbered, opened: Opener) -> None:
    decoder = SampleDecoder(caption_key="json.caption")
    source = stream(opened(write_numbered([3])), decoder=decoder)
    expected = (
        r"3 samples were tried .*caption_key='json.caption'.* 3 missing_caption; the first: missing_caption: "
        r"00000\d of /.*000\.tar: there is no json\.caption; its files"
    )
    with pytest.raises(ValueError, match=expected):
        next(iter(source))


@pytest.mark.parametrize(
    ("data", "count"), [("cc12m", 32), pytest.param("emoji", 1851, marks=pytest.mark.slow)]
)
def test_real_shards_are_read_whole(assets: Path, opened: Opener, data: str, count: int) -> None:
    source = opened(expand_shards(str(assets / "data" / data)))
    passing = stream(source, decoder=SampleDecoder(), finite=True, batch_size=16, side=64)
    batches = list(loaded(passing, 2))
    keys = [key for batch in batches for key in batch.keys or []]
    assert len(keys) == len(set(keys)) == count
    assert all(batch.images.shape[1:] == (3, 64, 64) for batch in batches)
    assert skipped(batches) == {} == source.skipped()
