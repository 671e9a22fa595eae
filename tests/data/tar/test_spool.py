"""Shards over HTTP and from commands: fetched whole, once for all processes, and kept within bounds."""

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.skips import SkippedSampleError
from rfdit.data.stream.datamodule import StreamDataModule
from rfdit.data.stream.dataset import Stream
from rfdit.data.stream.positions import Bucket, EndlessPlan, FinitePlan
from rfdit.data.tar.remote import UnreadableShardError, identity
from rfdit.data.tar.source import TarReader
from rfdit.data.tar.spool import Spool
from rfdit.storage.disk_cache import ENTRY
from tests.support.data.shards import Files, write_tar
from tests.support.servers.counting_server import Handler

WriteNumbered = Callable[[Sequence[int]], list[str]]

pytestmark = pytest.mark.usefixtures("no_pauses")


def test_shards_over_http(write_numbered: WriteNumbered, server: str, tmp_path: Path) -> None:
    names = [Path(shard).name for shard in write_numbered([7, 3, 12])]
    urls = [f"{server}/{name}" for name in [*names, "nowhere.tar", "broken.tar"]]
    source = TarReader(cache=str(tmp_path / "cache"))(urls, filters=Filters())
    assert source.shard_sizes == [7, 3, 12, 0, 0]
    assert source.skipped() == {"unreadable_shard": 2}
    plan = FinitePlan(Bucket((8, 8), source.shard_sizes), batch_size=4, ranks=1)
    stream = Stream(source=source, plan=plan, decoder=SampleDecoder(), seed=0)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    keys = [int(key) for batch in loader for key in batch.keys]
    assert keys == list(range(22))
    assert [Handler.requests[name] for name in names] == [1, 1, 1]  # by the process that indexed it


def test_a_spool_too_small_for_all_fetches_again(
    write_numbered: WriteNumbered, server: str, tmp_path: Path
) -> None:
    names = [Path(shard).name for shard in write_numbered([8] * 6)]
    size = (tmp_path / names[0]).stat().st_size
    reader = TarReader(cache=str(tmp_path / "cache"), spool_gb=2.5 * size / 1e9)
    source = reader([f"{server}/{name}" for name in names], filters=Filters())
    plan = EndlessPlan([Bucket((8, 8), source.shard_sizes)], seed=0, shuffle_shards=2, batch_size=48, ranks=1)
    others = threading.enumerate()
    batches = iter(Stream(source=source, plan=plan, decoder=SampleDecoder(), seed=0))
    for _ in range(3):
        assert sorted(map(int, next(batches).keys)) == list(range(48))
    batches.close()  # type: ignore[attr-defined]  # no fetch begins any more, and those that have begun end
    for thread in threading.enumerate():
        if thread.name == "rfdit-spool" and thread not in others:
            thread.join()
    assert Handler.requests.total() > 6
    copies = [f for f in (tmp_path / "cache/shards").glob("[0-9a-f][0-9a-f]/*") if ENTRY.fullmatch(f.name)]
    assert 1 <= sum(f.stat().st_size >= size for f in copies) <= 2


def test_a_shard_that_changes_is_fetched_again(
    make_sample: Callable[[int], Files], server: str, tmp_path: Path
) -> None:
    for numbers in (range(5), range(10, 15)):  # as long, and of another time
        shard = Path(write_tar(tmp_path / "a.tar", map(make_sample, numbers)))
        os.utime(shard, (1e9 + numbers[0],) * 2)
        source = TarReader(cache=str(tmp_path / "cache"))([f"{server}/a.tar"], filters=Filters())
        found = [
            raw["__key__"] for raw in source.samples(range(5)) if not isinstance(raw, SkippedSampleError)
        ]
        assert found == [f"{number:06d}" for number in numbers]


def test_shards_of_many_blocks_need_no_ranges(
    make_sample: Callable[[int], Files], server: str, tmp_path: Path
) -> None:
    filler = {"bin": os.urandom(3_000_000)}
    write_tar(tmp_path / "big.tar", (make_sample(n) | filler for n in range(5)))
    source = TarReader(cache=str(tmp_path / "cache"))([f"{server}/big.tar"], filters=Filters())
    assert source.shard_sizes == [5]
    assert source.skipped() == {}


def test_what_is_wrong_is_said(write_numbered: WriteNumbered, server: str, tmp_path: Path) -> None:
    (shard,) = write_numbered([5])
    name = Path(shard).name

    def said(*urls: str, **settings: object) -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            TarReader(**{"cache": str(tmp_path / "cache")} | settings)(urls, filters=Filters())
        return "; ".join(str(warning.message) for warning in caught if warning.category is UserWarning)

    nowhere = f"{server}/nowhere.tar"
    assert said(shard, nowhere) == (
        f"data.shards: 1 of 2 shards cannot be read, the first is {nowhere}: the server answers 404 File not found"
    )
    with pytest.raises(
        ValueError, match=r"data\.shards: none of 2 shards can be read, the first is http.*404"
    ):
        said(nowhere, "http://127.0.0.1:9/a.tar")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/a\.tar: ClientConnectorError: Cannot connect"):
        said("http://127.0.0.1:9/a.tar")
    with pytest.raises(ValueError, match="s3"):
        said("s3://bucket/a.tar")
    with pytest.raises(
        ValueError, match=r"data\.reader\.spool_gb=1e-06 is too small for http.* which has .* kB"
    ):
        said(f"{server}/{name}", spool_gb=1e-6, cache=str(tmp_path / "other"))
    assert Handler.requests[name] == 0  # it was not even tried
    with pytest.raises(ValueError, match=r"data\.reader\.cache: .* cannot be"):
        said(f"{server}/{name}", cache="/proc/nope")
    with pytest.raises(ValueError, match=r"data\.reader\.cache: the index of .* cannot be written"):
        said(shard, cache="/proc/nope")
    with pytest.raises(ValueError, match=r"data\.reader\.spool_gb=0 must be more than 0"):
        TarReader(spool_gb=0)


def test_a_server_that_is_busy_is_asked_again(
    write_numbered: WriteNumbered, server: str, tmp_path: Path
) -> None:
    name = Path(write_numbered([5])[0]).name
    Handler.busy[name] = 3  # a HEAD, fsspec's GET after it, and a HEAD
    source = TarReader(cache=str(tmp_path / "cache"))([f"{server}/{name}"], filters=Filters())
    assert (source.shard_sizes, source.skipped()) == ([5], {})


def test_a_command_that_fails_gives_no_shard(tmp_path: Path, write_numbered: WriteNumbered) -> None:
    (shard,) = write_numbered([5])
    spool = Spool(cache=str(tmp_path / "cache"), max_bytes=10**9)
    for url in ("pipe:false", f"pipe:cat {shard} && false"):
        with pytest.raises(UnreadableShardError, match="pipe:"):
            spool.open(url, identity(url))
    url = f"pipe:cat {shard}"
    with spool.open(url, identity(url)) as file:
        assert file.read() == Path(shard).read_bytes()


def test_a_spool_that_is_smaller_than_a_group_is_named(
    write_numbered: WriteNumbered, server: str, tmp_path: Path
) -> None:
    names = [Path(shard).name for shard in write_numbered([8] * 6)]
    size = (tmp_path / names[0]).stat().st_size
    urls = [f"{server}/{name}" for name in names]

    def said(spool: float, shards: list[str], shuffle_shards: int) -> list[str]:
        module = StreamDataModule(
            shards=shards,
            reader=TarReader(cache=str(tmp_path / "cache"), spool_gb=spool * size / 1e9),
            decoder=SampleDecoder(),
            filters=Filters(),
            resolution=8,
            batch_size=4,
            num_workers=0,
            seed=0,
            shuffle_shards=shuffle_shards,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module.train_dataloader()
        return [str(each.message) for each in caught if "spool_gb" in str(each.message)]

    (warning,) = said(3.5, urls, 4)
    assert f"is less than the {4 * size / 1000:.1f} kB of 4 shards that are mixed with each other" in warning
    assert said(3.5, urls, 3) == said(1.5, [str(tmp_path / name) for name in names], 6) == []


def test_a_shard_that_vanishes_does_not_copy_all_the_others(
    write_numbered: WriteNumbered, server: str, tmp_path: Path
) -> None:
    names = [Path(shard).name for shard in write_numbered([40] * 16)]
    size = (tmp_path / names[0]).stat().st_size
    urls = [f"{server}/{name}" for name in names]
    TarReader().write_indexes([str(tmp_path / name) for name in names], filters=Filters())
    reader = TarReader(cache=str(tmp_path / "cache"), spool_gb=4.8 * size / 1e9)
    source = reader(urls, filters=Filters())
    (tmp_path / names[5]).unlink()
    plan = EndlessPlan([Bucket((8, 8), source.shard_sizes)], seed=0, shuffle_shards=2, batch_size=40, ranks=1)
    batches = iter(Stream(source=source, plan=plan, decoder=SampleDecoder(), seed=0))
    with pytest.warns(UserWarning, match=f"{names[5]}.*left out"):
        keys = [int(key) for _ in range(16) for key in next(batches).keys or []]
    batches.close()  # type: ignore[attr-defined]
    assert len(keys) == 16 * 40
    assert set(keys) == set(range(16 * 40)) - set(range(200, 240))
    copies = sum(count for name, count in Handler.requests.items() if name.endswith(".tar"))
    assert (
        copies < 3 * 16
    )  # some come again: those that stand in, the next epoch's first, and what was evicted too soon


def test_a_damaged_copy_is_made_again(tmp_path: Path, write_numbered: WriteNumbered) -> None:
    (shard,) = write_numbered([5])
    url, cache = f"pipe:cat {shard}", str(tmp_path / "cache")
    Spool(cache=cache, max_bytes=10**9).open(url, identity(url)).close()
    (copy,) = (f for f in (tmp_path / "cache/shards").glob("[0-9a-f][0-9a-f]/*") if ENTRY.fullmatch(f.name))
    copy.write_bytes(bytes(copy.stat().st_size))
    with Spool(cache=cache, max_bytes=10**9).open(url, identity(url)) as file:  # that of another process
        assert file.read() == Path(shard).read_bytes()
