"""Shards over HTTP and from commands: fetched whole, once for all processes, and kept within bounds."""

import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from torch.utils.data import DataLoader

from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.plan import Bucket, EndlessPlan, FinitePlan
from rfdit.data.skips import SkippedSampleError
from rfdit.data.spool import Spool, UnreadableShardError
from rfdit.data.stream import Stream
from rfdit.data.tar_source import TarReader
from tests.data.conftest import Files, write_tar

WriteNumbered = Callable[[Sequence[int]], list[str]]


class Handler(SimpleHTTPRequestHandler):
    """Serves files, knows no ranges, and counts what it is asked for."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[Path(self.path).name] += 1
        if self.path.endswith("broken.tar"):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(bytes(500))
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfdit.data.spool.PAUSES", (0.0, 0.0))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    Handler.asked.clear()
    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def test_shards_over_http(write_numbered: WriteNumbered, server: str, tmp_path: Path) -> None:
    names = [Path(shard).name for shard in write_numbered([7, 3, 12])]
    urls = [f"{server}/{name}" for name in [*names, "nowhere.tar", "broken.tar"]]
    source = TarReader(cache=str(tmp_path / "cache"))(urls, filters=Filters())
    assert source.shard_sizes == [7, 3, 12, 0, 0]
    assert source.skipped() == {"unreadable_shard": 2}
    plan = FinitePlan(Bucket((8, 8), source.shard_sizes), batch_size=4, ranks=1)
    stream = Stream(source=source, plan=plan, decoder=SampleDecoder(), seed=0, workers=2)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    keys = [int(key) for batch in loader for key in batch.keys]
    assert keys == list(range(22))
    assert [Handler.asked[name] for name in names] == [1, 1, 1]  # by whom it was indexed


def test_a_spool_too_small_for_all_fetches_again(
    write_numbered: WriteNumbered, server: str, tmp_path: Path
) -> None:
    names = [Path(shard).name for shard in write_numbered([8] * 6)]
    size = (tmp_path / names[0]).stat().st_size
    reader = TarReader(cache=str(tmp_path / "cache"), spool_gb=2.5 * size / 1e9)
    source = reader([f"{server}/{name}" for name in names], filters=Filters())
    plan = EndlessPlan([Bucket((8, 8), source.shard_sizes)], seed=0, shuffle_shards=2, batch_size=48, ranks=1)
    batches = iter(Stream(source=source, plan=plan, decoder=SampleDecoder(), seed=0))
    for _ in range(3):
        assert sorted(map(int, next(batches).keys)) == list(range(48))
    assert Handler.asked.total() > 6
    spooled = sum(
        f.stat().st_size for f in (tmp_path / "cache/shards").rglob("*") if f.stat().st_size >= size
    )
    assert spooled <= 2.5 * size


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

    def said(url: str, **settings: object) -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            TarReader(**{"cache": str(tmp_path / "cache")} | settings)([url], filters=Filters())
        return "; ".join(str(warning.message) for warning in caught if warning.category is UserWarning)

    assert "FileNotFoundError" in said(f"{server}/nowhere.tar")
    assert "1 of 1 shards cannot be read, the first is http://127.0.0.1:9/a.tar" in said(
        "http://127.0.0.1:9/a.tar"
    )
    assert "s3" in said("s3://bucket/a.tar")
    with pytest.raises(ValueError, match=r"data\.reader\.spool_gb is too small for http"):
        said(f"{server}/{name}", spool_gb=1e-6, cache=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"data\.reader\.cache: .* cannot be"):
        said(f"{server}/{name}", cache="/proc/nope")
    with pytest.raises(ValueError, match=r"data\.reader\.cache: the index of .* cannot be written"):
        said(shard, cache="/proc/nope")
    with pytest.raises(ValueError, match=r"data\.reader\.spool_gb=0 must be more than 0"):
        TarReader(spool_gb=0)


def test_each_shard_is_fetched_ahead_in_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfdit.data.spool.LOOKAHEAD", 100)
    asked: Counter[int] = Counter()
    fetches = [lambda shard=shard: asked.update([shard]) for shard in range(3)]
    spool = Spool(cache=str(tmp_path), max_bytes=10**6)
    numbers = (number for _ in range(4) for number in range(3000))
    passed = list(spool.ahead(numbers, lambda number: fetches[number // 1000]))
    assert passed == [number for _ in range(4) for number in range(3000)]
    time.sleep(0.2)
    assert all(asked[shard] == 4 for shard in range(3))


def test_a_command_that_fails_gives_no_shard(tmp_path: Path, write_numbered: WriteNumbered) -> None:
    (shard,) = write_numbered([5])
    spool = Spool(cache=str(tmp_path / "cache"), max_bytes=10**9)
    for url in ("pipe:false", f"pipe:cat {shard} && false"):
        with pytest.raises(UnreadableShardError, match="pipe:"):
            spool.open(url, spool.identity(url))
    url = f"pipe:cat {shard}"
    with spool.open(url, spool.identity(url)) as file:
        assert file.read() == Path(shard).read_bytes()
