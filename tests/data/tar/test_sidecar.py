"""Indexes beside remote shards: less is fetched, changes are noticed, and nothing else differs."""

import contextlib
import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import pytest

from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.skips import SkippedSampleError
from rfdit.data.stream.dataset import Stream
from rfdit.data.stream.positions import Bucket, EndlessPlan
from rfdit.data.tar.sidecar import Sidecar, StaleSidecarError
from rfdit.data.tar.source import TarReader, TarSource
from rfdit.data.tar.write import write_tar as pack_tar
from rfdit.storage.checked import checked_json, parse_checked_json
from tests.support.data.shards import Files, write_tar
from tests.support.servers.counting_server import Handler
from tests.support.waiting import wait_until

WriteNumbered = Callable[[Sequence[int]], list[str]]

pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def reader(tmp_path: Path) -> TarReader:
    return TarReader(cache=str(tmp_path / "cache"))


def keys(source: TarSource, *, shuffle_shards: int, batches: int, batch_size: int = 8) -> list[list[str]]:
    bucket = Bucket((8, 8), source.shard_sizes)
    plan = EndlessPlan([bucket], seed=3, shuffle_shards=shuffle_shards, batch_size=batch_size, ranks=1)
    stream = Stream(source=source, plan=plan, decoder=SampleDecoder(caption_key=None), seed=0)
    return [list(batch.keys or []) for batch in itertools.islice(stream, batches)]


def read(source: TarSource) -> list[str]:
    """The keys of all samples in their order; of those that cannot be read, why."""
    found = source.samples(range(sum(source.shard_sizes)))
    return [str(raw.reason) if isinstance(raw, SkippedSampleError) else str(raw["__key__"]) for raw in found]


def complaints(open_source: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_source()
    return [str(each.message) for each in caught if "data." in str(each.message)]


def test_the_first_batch_needs_the_indexes_and_its_own_group(
    write_numbered: WriteNumbered, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [40] * 12
    shards = write_numbered(sizes)
    size = Path(shards[0]).stat().st_size
    assert TarReader().write_indexes(shards, filters=Filters()).problems == ()
    # Room for the three shards of a group, and for no other before one of them is used up.
    reader = TarReader(cache=str(tmp_path / "cache"), spool_gb=3.5 * size / 1e9)
    source = reader([f"{server}/{Path(shard).name}" for shard in shards], filters=Filters())
    indexes = {f"{Path(shard).name}.idx" for shard in shards}
    assert source.shard_sizes == sizes
    assert set(Handler.requests) == indexes
    assert Handler.sent.total() < size
    assert capsys.readouterr().out == ""
    plan = EndlessPlan(
        [Bucket((8, 8), sizes)], seed=3, shuffle_shards=3, batch_size=120, ranks=1
    )  # a batch is a group
    group = {f"{number // 40:03d}.tar" for number in next(plan.batches(0, 0, 1)).numbers}
    assert len(group) == 3
    keys(source, shuffle_shards=3, batches=1)
    assert set(Handler.requests) == indexes | group
    assert all(Handler.requests[name] == 1 for name in Handler.requests)
    assert Handler.sent.total() == sum((tmp_path / name).stat().st_size for name in [*indexes, *group])


@pytest.mark.slow
def test_the_stream_is_the_same_without_indexes(
    make_sample: Callable[[int], Files], server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Local, remote with and without indexes; plain, and with filters and the sizes of images; also damaged."""
    shards = [
        write_tar(tmp_path / f"{n}.tar", map(make_sample, range(10 * n, 10 * n + 5 + n))) for n in range(6)
    ]
    damaged = bytearray(Path(shards[2]).read_bytes())
    damaged[5] ^= 1  # in the name of the first file
    Path(shards[2]).write_bytes(damaged)
    Path(shards[4]).write_bytes(Path(shards[4]).read_bytes()[:9000])
    urls = [f"{server}/{Path(shard).name}" for shard in shards]
    for filters, image_sizes in ((Filters(), False), (Filters(min_caption=9), False), (Filters(), True)):
        settings = {"filters": filters, "image_sizes": image_sizes}
        local = TarReader(cache=str(tmp_path / "local"))(shards, **settings)
        before = TarReader(cache=str(tmp_path / f"before{image_sizes}{filters.active}"))(urls, **settings)
        said = capsys.readouterr().out
        assert said.startswith("copying 6 shards without an index for these filters and buckets, ")
        assert "rfdit index" in said
        assert TarReader().write_indexes(shards, filters=filters, image_sizes=image_sizes).problems == ()
        after = TarReader(cache=str(tmp_path / f"after{image_sizes}{filters.active}"))(urls, **settings)
        assert capsys.readouterr().out == ""
        assert local.skipped() == before.skipped() == after.skipped() != {}
        assert local.shard_sizes == before.shard_sizes == after.shard_sizes
        streams = [keys(source, shuffle_shards=2, batches=20) for source in (local, before, after)]
        assert streams[0] == streams[1] == streams[2]
        if image_sizes:
            assert (local.image_sizes() == after.image_sizes()).all()
            assert len(after.image_sizes()) == sum(after.shard_sizes)


def test_an_index_of_another_size_or_none_at_all_is_not_used(
    make_sample: Callable[[int], Files], server: str, tmp_path: Path, reader: TarReader
) -> None:
    shards = [write_tar(tmp_path / f"{n}.tar", map(make_sample, range(n, n + 5))) for n in range(3)]
    reader.write_indexes(shards, filters=Filters())
    write_tar(tmp_path / "1.tar", map(make_sample, range(30)))
    (tmp_path / "2.tar.idx").write_text("<html>Welcome</html>")
    urls = [f"{server}/{n}.tar" for n in range(3)]
    (said,) = complaints(lambda: reader(urls, filters=Filters()))
    assert said.startswith(
        f"data.shards: 2 of 3 indexes cannot be used, the first: {server}/1.tar.idx describes a file"
    )
    assert said.endswith("run rfdit index to write them again")
    assert (Handler.requests["0.tar"], Handler.requests["1.tar"], Handler.requests["2.tar"]) == (0, 1, 1)
    assert reader(urls, filters=Filters()).shard_sizes == [5, 30, 5]


def test_an_index_from_before_a_change_of_the_same_size_is_not_used(
    make_sample: Callable[[int], Files], server: str, tmp_path: Path, reader: TarReader
) -> None:
    write_tar(tmp_path / "a.tar", map(make_sample, range(5)))
    url, out = f"{server}/a.tar", str(tmp_path / "indexes")
    reader.write_indexes([url], filters=Filters(), out=out)
    here = TarReader(cache=str(tmp_path / "other"), index=out)
    os.utime(tmp_path / "a.tar", (1e9, 1e9))  # what Last-Modified tells
    (said,) = complaints(lambda: here([url], filters=Filters()))
    assert "a.tar.idx describes another state of the shard, as the server says" in said
    # The command makes it again, and then it is used.
    assert reader.write_indexes([url], filters=Filters(), out=out).problems == ()
    fresh = TarReader(cache=str(tmp_path / "fresh"), index=out)
    assert complaints(lambda: fresh([url], filters=Filters())) == []


def test_a_shard_that_is_not_the_indexed_one_is_left_out(
    make_sample: Callable[[int], Files], server: str, tmp_path: Path, reader: TarReader
) -> None:
    """The other shard has the same size and the index does not know this server, so it shows on arrival."""
    shards = [write_tar(tmp_path / f"{n}.tar", map(make_sample, range(n, n + 5))) for n in range(2)]
    reader.write_indexes(shards, filters=Filters())
    Path(shards[1]).write_bytes(Path(shards[0]).read_bytes())
    source = reader([f"{server}/{n}.tar" for n in range(2)], filters=Filters())
    found: list[str] = []
    said = complaints(lambda: found.extend(read(source)))
    assert found == [*(f"{n:06d}" for n in range(5)), *["unreadable_shard"] * 5]
    assert set(said) == {
        f"data.shards: {server}/1.tar: its bytes are not those that its index describes; write the index again; "
        "its samples are left out"
    }
    # Three tries by the prefetch and three by the reader, not some for every sample.
    assert Handler.requests["1.tar"] <= 6


def test_indexes_in_a_folder_of_their_own_serve_every_kind_of_shard(
    make_sample: Callable[[int], Files], server: str, tmp_path: Path, reader: TarReader
) -> None:
    paths = [write_tar(tmp_path / f"{n}.tar", map(make_sample, range(10 * n, 10 * n + 5))) for n in range(4)]
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shards/1.tar", Path(paths[1]).read_bytes())
    shards = [f"{server}/0.tar", "memory://shards/1.tar", f"file://{paths[2]}", f"pipe:cat {paths[3]}"]
    out = tmp_path / "indexes"
    assert reader.write_indexes(shards, filters=Filters(), out=str(out)).problems == ()
    assert len(list(out.glob("*.idx"))) == 4
    Handler.requests.clear()
    there = f"{server}/indexes"
    source = TarReader(cache=str(tmp_path / "b"), index=there)(shards, filters=Filters())
    assert Handler.requests == {f"indexes/{path.name}".split("/")[1]: 1 for path in out.glob("*.idx")}
    assert not list((tmp_path / "b/shards").glob("*/*"))
    assert read(source) == [f"{10 * n + i:06d}" for n in range(4) for i in range(5)]
    memory.rm("/shards", recursive=True)


def test_indexes_beside_shards_that_fsspec_reads(
    write_numbered: WriteNumbered, tmp_path: Path, reader: TarReader
) -> None:
    memory = fsspec.filesystem("memory")
    shards = write_numbered([4, 5])
    reader.write_indexes(shards, filters=Filters())
    for shard in shards:
        memory.pipe_file(f"/set/{Path(shard).name}", Path(shard).read_bytes())
        memory.pipe_file(f"/set/{Path(shard).name}.idx", Path(f"{shard}.idx").read_bytes())
    for urls in (["memory://set/000.tar", "memory://set/001.tar"], [f"file://{shard}" for shard in shards]):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        source = reader(urls, filters=Filters())
        assert not list((tmp_path / "cache/shards").glob("*/*"))
        assert read(source) == [f"{n:06d}" for n in range(9)]
        assert len({path.parent for path in (tmp_path / "cache/shards").glob("*/*")}) >= 1
    memory.rm("/set", recursive=True)


def test_a_packed_shard_has_its_index(
    make_sample: Callable[[int], Files], server: str, tmp_path: Path, reader: TarReader
) -> None:
    pack_tar(tmp_path / "0.tar", map(make_sample, range(6)))
    source = reader([f"{server}/0.tar"], filters=Filters())
    assert source.shard_sizes == [6]
    assert set(Handler.requests) == {"0.tar.idx"}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 9},
        {"spans": [[0, 512], [100, 600]]},
        {"spans": [[0, 10**9]]},
        {"spans": [[-5, 5]]},
        {"spans": [["a", 1]]},
        {"spans": [[0, 2**70]]},
        {"image_sizes": [[8, 8]]},
        {"size": "big"},
        {"digest": None},
        {"skipped": {"damaged_tar": []}},
        {"what": 1},
    ],
)
def test_what_strangers_write_is_checked(
    write_numbered: WriteNumbered, reader: TarReader, change: dict[str, object]
) -> None:
    (shard,) = write_numbered([3])
    reader.write_indexes([shard], filters=Filters())
    good = Path(f"{shard}.idx").read_bytes()
    assert Sidecar.from_json(good).to_json() == good
    with pytest.raises(StaleSidecarError):
        Sidecar.from_json(checked_json(parse_checked_json(good, place="") | change, indent=None))
    for data in (b"", b"[]", b"[" * 100_000, good[:-5]):
        with pytest.raises(StaleSidecarError):
            Sidecar.from_json(data)


def test_progress_of_indexing_is_shown(
    write_numbered: WriteNumbered,
    server: str,
    reader: TarReader,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rfdit.progress.DELAY", 0.0)
    monkeypatch.setattr("rfdit.progress.LINE_SECONDS", 0.0)
    shards = write_numbered([2, 2, 2])
    reader.write_indexes(shards, filters=Filters())
    assert "indexing: 3 of 3 shards" in capsys.readouterr().out
    reader([f"{server}/{Path(shard).name}" for shard in shards], filters=Filters())
    said = capsys.readouterr().out
    assert "looking up: 3 of 3 shards" in said


SCRIPT = """
import faulthandler, sys
from rfdit.data.filters import Filters
from rfdit.data.tar.source import TarReader
if __name__ == "__main__":
    print("ready", flush=True)
    faulthandler.dump_traceback_later(60)  # in the middle of a hang
    TarReader(cache=sys.argv[1])(sys.argv[2:], filters=Filters())
"""


def begun(stage: str, pid: int, silent: socket.socket, fifo: Path) -> bool:
    """True once the script, or a process that it started, waits for a shard."""
    if stage == "silent server":
        return bool(select.select([silent], [], [], 0)[0])
    if stage == "commands":
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            return any(file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children"))
        return False
    try:
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)  # left open: from now on its reader waits for data
    except OSError:  # it has no reader yet
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["silent server", "commands", "processes"])
def test_ctrl_c_ends_in_a_line_at_once(tmp_path: Path, stage: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    os.mkfifo(tmp_path / "fifo.tar")  # whoever opens it waits
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shards = {
            "silent server": [f"http://127.0.0.1:{silent.getsockname()[1]}/{n}.tar" for n in range(100)],
            "commands": ["pipe:sleep 1000"],
            "processes": [f"{'./' * n}fifo.tar" for n in range(40)],
        }[stage]
        running = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "cache"), *shards],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            start_new_session=True,
        )
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            wait_until(lambda: begun(stage, running.pid, silent, tmp_path / "fifo.tar"))
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(timeout=120)
            ended = running.returncode
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
        out, err = running.communicate(timeout=120)  # also of a command, which must not live on
    assert out.splitlines()[-1] == (
        "stopped while indexing shards; the next start goes on with those that are left"
    )
    assert "Traceback" not in err
    assert ended == 130, err
