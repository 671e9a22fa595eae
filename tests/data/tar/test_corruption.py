"""Shards damaged at random places: a pass ends, and every sample is delivered or counted."""

import io
import itertools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rfdit.batch import Batch
from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.stream.dataset import Stream
from rfdit.data.stream.positions import Bucket, EndlessPlan, FinitePlan
from rfdit.data.tar.source import TarReader
from tests.support.data.shards import Files, write_tar

SAMPLES = 12
PLACES = 70  # for each of three kinds of damage


def flip(data: bytes, place: int, rng: random.Random) -> bytes:
    end = place + rng.choice([1, 8, 600])
    return data[:place] + bytes(byte ^ rng.randrange(1, 256) for byte in data[place:end]) + data[end:]


def truncate(data: bytes, place: int, rng: random.Random) -> bytes:
    return data[:place]


def delete(data: bytes, place: int, rng: random.Random) -> bytes:
    return data[:place] + data[place + rng.choice([1, 7, 512, 700]) :]


def keys(batches: "itertools.islice[Batch] | Stream") -> list[int]:
    return [int(key) for batch in batches for key in batch.keys or []]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damage_anywhere(
    make_sample: Callable[[int], Files], tmp_path: Path, damage: Callable[[bytes, int, random.Random], bytes]
) -> None:
    whole = Path(write_tar(tmp_path / "whole.tar", map(make_sample, range(SAMPLES)))).read_bytes()
    good = write_tar(tmp_path / "good.tar", map(make_sample, range(SAMPLES, 2 * SAMPLES)))
    rng = random.Random(damage.__name__)
    lost = 0
    for trial in range(PLACES):
        bad = tmp_path / f"{trial}.tar"
        bad.write_bytes(damage(whole, rng.randrange(len(whole)), rng))
        source = TarReader(cache=str(tmp_path / "cache"))([str(bad), good], filters=Filters())
        bucket = Bucket((8, 8), source.shard_sizes)
        settings = {"source": source, "decoder": SampleDecoder(), "seed": trial}
        stream = Stream(plan=FinitePlan(bucket, batch_size=5, ranks=1), **settings)
        batches = list(stream)
        delivered = keys(batches)
        assert len(set(delivered)) == len(delivered)
        assert set(range(SAMPLES, 2 * SAMPLES)) <= set(delivered)
        counts = Counter(source.skipped()) + sum((Counter(b.skipped) for b in batches), Counter())
        missing = 2 * SAMPLES - len(delivered)
        lost += missing
        if damage is truncate:
            assert delivered[: SAMPLES - missing] == list(range(SAMPLES - missing))  # all before the end
            assert counts.get("truncated_tar") or not missing
        else:
            assert missing <= min(sum(counts.values()), 2)
        # Training goes on for ever, with whole batches.
        plan = EndlessPlan([bucket], seed=trial, shuffle_shards=2, batch_size=5, ranks=1)
        assert len(keys(itertools.islice(Stream(plan=plan, **settings), 6))) == 30
        bad.unlink()
    assert lost >= PLACES // 4  # the places were worth a try


def test_bytes_in_front_and_behind(make_sample: Callable[[int], Files], tmp_path: Path) -> None:
    whole = Path(write_tar(tmp_path / "whole.tar", map(make_sample, range(3)))).read_bytes()
    for data in (b"junk" * 200 + whole, whole + b"junk" * 200, whole[:100] + whole):
        (tmp_path / "bad.tar").write_bytes(io.BytesIO(data).getvalue())
        source = TarReader(cache=str(tmp_path))([str(tmp_path / "bad.tar")], filters=Filters())
        assert source.shard_sizes == [3]
        assert source.skipped()
