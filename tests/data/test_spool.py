"""Shards over HTTP and from commands: fetched whole, once for all processes, and kept within bounds."""

import threading
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
from rfdit.data.spool import Spool
from rfdit.data.stream import Stream
from rfdit.data.tar_source import TarReader

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


def test_a_command_that_fails_gives_no_shard(tmp_path: Path, write_numbered: WriteNumbered) -> None:
    (shard,) = write_numbered([5])
    spool = Spool(cache=str(tmp_path / "cache"), max_bytes=10**9)
    for url in ("pipe:false", f"pipe:cat {shard} && false"):
        with pytest.raises(OSError, match="pipe:"):
            spool.open(url)
    with spool.open(f"pipe:cat {shard}") as file:
        assert file.read() == Path(shard).read_bytes()
