"""Several sets of one run: exact shares and repetitions, by position alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.stream.datamodule import StreamDataModule
from rfdit.data.stream.positions import Bucket, EndlessPlan, StreamState
from rfdit.data.stream.sets import SetRate
from rfdit.data.tar.source import TarReader

SIZES = [[5, 2], [3], [10]]  # shards of three sets
FLAT = [size for sizes in SIZES for size in sizes]


def bucket(rates: Sequence[Fraction]) -> Bucket:
    return Bucket(
        (8, 8), FLAT, rates=[SetRate(len(sizes), rate) for sizes, rate in zip(SIZES, rates, strict=True)]
    )


def numbers(buckets: Sequence[Bucket], first: int, count: int, *, ranks: int = 1) -> list[int]:
    """The samples of `count` global batches of four, from batch `first` on."""
    progress = StreamState(origin=(0,) * len(buckets), batch=4, batches=first)
    plan = EndlessPlan(
        buckets, seed=7, shuffle_shards=2, batch_size=4 // ranks, ranks=ranks, progress=progress
    )
    parts = [plan.batches(rank, 0, 1) for rank in range(ranks)]
    return [n for _ in range(count) for part in parts for n in next(part).numbers]


def set_of(number: int) -> int:
    return 0 if number < 7 else 1 if number < 10 else 2


def test_repeats_are_exact_in_every_epoch() -> None:
    whole = bucket([Fraction(1), Fraction(4), Fraction(2)])
    epoch = 7 + 4 * 3 + 2 * 10  # 39
    seen = numbers([whole], 0, 39)
    for n in range(4):
        counts = Counter(seen[n * epoch : (n + 1) * epoch])
        assert [counts[number] for number in range(20)] == [1] * 7 + [4] * 3 + [2] * 10


def test_weights_are_shares_of_any_stretch_whatever_the_sizes() -> None:
    weights = [Fraction("0.7"), Fraction("0.1"), Fraction("0.2")]
    rates = [weight / sum(sizes) for weight, sizes in zip(weights, SIZES, strict=True)]
    counts: Counter[int] = Counter()
    for n, number in enumerate(numbers([bucket(rates)], 0, 500), 1):
        counts[set_of(number)] += 1
        assert all(abs(counts[k] - n * weight) < 3 for k, weight in enumerate(weights))
    assert sorted(counts.values()) == [200, 400, 1400]


def test_the_order_is_that_of_any_number_of_ranks_and_any_start() -> None:
    whole = [bucket([Fraction(1), Fraction("2.5"), Fraction(3)])]
    seen = numbers(whole, 0, 40)
    assert numbers(whole, 0, 40, ranks=4) == seen
    assert numbers(whole, 17, 23, ranks=2) == seen[17 * 4 :]


def test_shares_hold_over_buckets_together() -> None:
    """A set whose images are all in one bucket has its share all the same."""
    weights = [Fraction(1), Fraction(1), Fraction(2)]
    rates = [SetRate(len(sizes), w / sum(sizes)) for w, sizes in zip(weights, SIZES, strict=True)]
    tall, wide = np.array([0, 1, 5, 7, 8, 9]), np.array([2, 3, 4, 6, *range(10, 20)])
    buckets = [Bucket((8, 4), [2, 1, 3, 0], tall, rates), Bucket((4, 8), [3, 1, 0, 10], wide, rates)]
    counts = Counter(map(set_of, numbers(buckets, 0, 1000)))
    assert all(abs(counts[k] / 4000 - float(weight) / 4) < 0.01 for k, weight in enumerate(weights))


def data(shards: Any, **settings: Any) -> StreamDataModule:
    parts = {"reader": TarReader(), "decoder": SampleDecoder(), "filters": Filters()}
    return StreamDataModule(
        shards=shards, resolution=8, batch_size=4, num_workers=0, seed=0, **parts | settings
    )


def test_the_data_module_mixes_the_items_of_its_list(
    write_numbered: Callable[[Sequence[int]], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second, third = write_numbered([3, 3, 2])
    loader = data([[first, second], third], repeats=[1, 5]).train_dataloader()
    keys = [key for batch, _ in zip(loader, range(4)) for key in batch.keys]
    assert [Counter(keys)[f"{n:06d}"] for n in range(8)] == [1] * 6 + [5] * 2
    weighted = data([[first, second], third], weights=[1, 3])
    keys = [key for batch, _ in zip(weighted.train_dataloader(), range(6)) for key in batch.keys]
    assert sum(int(key) < 6 for key in keys) == 6


@pytest.mark.parametrize(
    ("shards", "settings", "sentence"),
    [
        (
            ["a.tar", "b.tar"],
            {"weights": [1, 2, 3]},
            r"^data\.weights=\[1, 2, 3\] has 3 numbers, and .* list of 2",
        ),
        (
            "a.tar",
            {"repeats": [2]},
            r"^data\.repeats=\[2\] needs a list of sets: data\.shards=\[FIRST,SECOND\]$",
        ),
        (["a.tar"], {"weights": [1], "repeats": [1]}, r"^data\.weights and data\.repeats are both set; "),
    ],
)
def test_numbers_that_do_not_fit_are_refused(shards: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        data(shards, **settings)
