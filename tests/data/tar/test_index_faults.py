"""Indexes and shards that are wrong, late or in the way: each is noticed, and the next start can put it right."""

import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rfdit.data.filters import Filters
from rfdit.data.pixels import IMAGE_EXTENSIONS
from rfdit.data.skips import SkippedSampleError
from rfdit.data.tar.remote import UnreadableShardError
from rfdit.data.tar.selection import Selection
from rfdit.data.tar.sidecar import SUFFIX
from rfdit.data.tar.source import TarReader, TarSource
from rfdit.data.tar.spool import Spool
from rfdit.data.tar.write import write_tar as pack_tar
from rfdit.storage.checked import checked_json, parse_checked_json
from tests.support.data.shards import Files, write_tar
from tests.support.servers.counting_server import Handler

MakeSample = Callable[[int], Files]

pytestmark = pytest.mark.usefixtures("no_pauses")


class SlowHandler(SimpleHTTPRequestHandler):
    """Sends files in pieces, with a pause after each."""

    piece = 1400

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while piece := source.read(self.piece):
            outputfile.write(piece)
            outputfile.flush()
            time.sleep(0.002)

    def log_message(self, *_: object) -> None:
        pass


class DrippingHandler(SlowHandler):
    """Byte by byte."""

    piece = 1


def serving(folder: Path, handler: type[SlowHandler]) -> ThreadingHTTPServer:
    found = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=found.serve_forever, daemon=True).start()
    return found


def read(source: TarSource) -> list[str]:
    """The keys of all samples; of those that cannot be read, why."""
    found = source.samples(range(sum(source.shard_sizes)))
    return [str(raw.reason) if isinstance(raw, SkippedSampleError) else str(raw["__key__"]) for raw in found]


def keys(numbers: range) -> list[str]:
    return [f"{number:06d}" for number in numbers]


def test_an_index_that_arrives_in_pieces_is_read_to_its_end(make_sample: MakeSample, tmp_path: Path) -> None:
    shard = pack_tar(tmp_path / "0.tar", map(make_sample, range(200)))
    assert shard == 200
    assert (tmp_path / "0.tar.idx").stat().st_size > 2 * SlowHandler.piece
    with serving(tmp_path, SlowHandler) as slow, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        url = f"http://127.0.0.1:{slow.server_port}/0.tar"
        source = TarReader(cache=str(tmp_path / "cache"))([url], filters=Filters())
        slow.shutdown()
    assert source.shard_sizes == [200]
    assert not list((tmp_path / "cache/shards").glob("*/*"))  # nothing was copied for it


def test_a_server_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.tar").write_bytes(bytes(1000))
    spool = Spool(cache=str(tmp_path / "cache"), max_bytes=10**9)
    monkeypatch.setattr("rfdit.data.tar.remote.PATIENCE", 0.1)
    with serving(tmp_path, DrippingHandler) as slow:
        url = f"http://127.0.0.1:{slow.server_port}/0.tar"
        with pytest.raises(UnreadableShardError, match=r"sends less than 66 kB in 0\.1 seconds"):
            spool.open(url, [url, 1000])
        slow.shutdown()


@pytest.mark.filterwarnings("ignore:data.shards")
def test_a_wrong_index_is_asked_for_again_at_the_next_start(
    make_sample: MakeSample, server: str, tmp_path: Path
) -> None:
    path = tmp_path / "0.tar"
    pack_tar(path, map(make_sample, range(5)))
    old = (tmp_path / "0.tar.idx").read_bytes()
    pack_tar(path, map(make_sample, range(5, 10)))  # of the same size
    new = (tmp_path / "0.tar.idx").read_bytes()
    (tmp_path / "0.tar.idx").write_bytes(old)

    def start() -> TarSource:
        return TarReader(cache=str(tmp_path / "cache"))([f"{server}/0.tar"], filters=Filters())

    running = start()
    assert read(running) == ["unreadable_shard"] * 5
    assert read(start()) == ["unreadable_shard"] * 5
    (tmp_path / "0.tar.idx").write_bytes(new)
    assert read(start()) == keys(range(5, 10))
    requests = Handler.requests["0.tar.idx"]
    assert read(start()) == keys(range(5, 10))
    assert Handler.requests["0.tar.idx"] == requests == 3  # what is right is remembered


@pytest.mark.parametrize("when", ["before the start", "before it is read"])
def test_a_damaged_index_in_the_cache_is_made_anew(
    make_sample: MakeSample, server: str, tmp_path: Path, when: str
) -> None:
    pack_tar(tmp_path / "0.tar", map(make_sample, range(5)))
    for shard in (str(tmp_path / "0.tar"), f"{server}/0.tar"):
        cache = tmp_path / str(len(shard))

        def start(cache: Path = cache, shard: str = shard) -> TarSource:
            return TarReader(cache=str(cache))([shard], filters=Filters(), image_sizes=True)

        source = start()
        (index,) = (cache / "index").glob("*/*")
        whole = index.read_bytes()
        flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
        for damaged in (b"", whole[:300], flipped, None):
            if damaged is None:
                index.unlink()
            else:
                index.write_bytes(damaged)
            if when == "before the start":
                source = start()
            assert source.image_sizes().shape == (5, 2)
            assert read(pickle.loads(pickle.dumps(source))) == keys(range(5))  # in a worker
            assert index.read_bytes() == whole


def test_an_index_of_what_the_shard_was_is_not_made_anew(make_sample: MakeSample, tmp_path: Path) -> None:
    pack_tar(tmp_path / "0.tar", map(make_sample, range(5)))
    source = TarReader(cache=str(tmp_path / "c"))([str(tmp_path / "0.tar")], filters=Filters())
    (index,) = (tmp_path / "c/index").glob("*/*")
    index.unlink()
    pack_tar(tmp_path / "0.tar", map(make_sample, range(4)))
    assert read(source) == ["unreadable_shard"] * 5


def test_the_index_of_a_command_is_always_written_anew(make_sample: MakeSample, tmp_path: Path) -> None:
    out, command = str(tmp_path / "indexes"), f"pipe:cat {tmp_path}/0.tar"
    for numbers in (range(5), range(5, 12)):
        write_tar(tmp_path / "0.tar", map(make_sample, numbers))
        here = TarReader(cache=str(tmp_path / "here"))
        assert here.write_indexes([command], filters=Filters(), out=out).problems == ()
        there = TarReader(cache=str(tmp_path / f"there{numbers[0]}"), index=out)
        assert read(there([command], filters=Filters())) == keys(numbers)


def test_a_spool_that_is_too_small_is_an_error_at_every_start(
    make_sample: MakeSample, server: str, tmp_path: Path
) -> None:
    pack_tar(tmp_path / "0.tar", map(make_sample, range(5)))
    size = (tmp_path / "0.tar").stat().st_size
    for spool, fits in ((2.0, True), (0.5, False), (0.5, False), (2.0, True)):
        reader = TarReader(cache=str(tmp_path / "cache"), spool_gb=spool * size / 1e9)
        if fits:
            assert reader([f"{server}/0.tar"], filters=Filters()).shard_sizes == [5]
        else:
            with pytest.raises(ValueError, match=r"data\.reader\.spool_gb=.* is too small for http"):
                reader([f"{server}/0.tar"], filters=Filters())


def test_captions_are_looked_for_where_the_settings_say_so(make_sample: MakeSample, tmp_path: Path) -> None:
    """Two indexes of one name must not differ."""

    def without_some(number: int) -> Files:
        files = make_sample(number)
        return files if number % 2 else {name: files[name] for name in files if name != "txt"}

    shard = write_tar(tmp_path / "0.tar", map(without_some, range(10)))

    def found(filters: Filters, key: str | None) -> tuple[str, int]:
        selection = Selection(filters, image_sizes=True, caption_key=key)
        with Path(shard).open("rb") as file:
            return selection.digest, len(selection(file)[0]["spans"])

    assert found(Filters(), "txt") == found(Filters(), None)
    assert found(Filters(), "txt")[1] == 10
    few, all_ = found(Filters(min_size=1), "txt"), found(Filters(min_size=1), None)
    assert (few[1], all_[1]) == (5, 10)
    assert few[0] != all_[0]


def test_images_without_a_size_are_counted_by_their_reason(make_sample: MakeSample, tmp_path: Path) -> None:
    images = {0: b"\xff\xd8\xff nothing", 1: b"%!PS-Adobe-3.0 EPSF-3.0", 2: None}

    def changed(number: int) -> Files:
        files = {
            name: data
            for name, data in make_sample(number).items()
            if name not in IMAGE_EXTENSIONS or number > 2
        }
        image = images.get(number)
        return files if image is None else files | {"jpg": image}

    with Path(write_tar(tmp_path / "0.tar", map(changed, range(5)))).open("rb") as file:
        arrays, skipped = Selection(image_sizes=True)(file)
    assert len(arrays["image_sizes"]) == len(arrays["spans"]) == 2
    assert skipped == {"corrupt_image": 1, "unsupported_image": 1, "missing_image": 1}


def test_writing_an_index_saves_copying_again(make_sample: MakeSample, server: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", map(make_sample, range(5)))
    url, out = f"{server}/0.tar", str(tmp_path / "indexes")
    reader = TarReader(cache=str(tmp_path / "cache"), index=out)
    assert reader.write_indexes([url], filters=Filters(), out=out).problems == ()
    # Also not for another one.
    assert reader.write_indexes([url], filters=Filters(), image_sizes=True, out=out).problems == ()
    assert read(reader([url], filters=Filters())) == keys(range(5))
    assert Handler.requests["0.tar"] == 1


def test_an_index_without_the_sizes_that_it_promises_is_none(
    make_sample: MakeSample, server: str, tmp_path: Path
) -> None:
    shard = write_tar(tmp_path / "0.tar", map(make_sample, range(5)))
    TarReader(cache=str(tmp_path / "here")).write_indexes([shard], filters=Filters(), image_sizes=True)
    index = tmp_path / f"0.tar.{Selection(image_sizes=True).digest}{SUFFIX}"
    about = parse_checked_json(index.read_bytes(), place="")
    del about["image_sizes"]
    index.write_bytes(checked_json(about))
    reader = TarReader(cache=str(tmp_path / "there"))
    with pytest.warns(UserWarning, match=r"1 of 1 index cannot be used, .* is not an index of a shard"):
        source = reader([f"{server}/0.tar"], filters=Filters(), image_sizes=True)
    assert source.image_sizes().shape == (5, 2)


def test_a_shard_that_becomes_empty_leaves_no_older_one(make_sample: MakeSample, tmp_path: Path) -> None:
    assert pack_tar(tmp_path / "0.tar", map(make_sample, range(3))) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"0.tar", "0.tar.idx"}
    assert pack_tar(tmp_path / "0.tar", []) == 0
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_of_indexes_left_is_removed_and_nothing_else(
    make_sample: MakeSample, tmp_path: Path
) -> None:
    shard = write_tar(tmp_path / "0.tar", map(make_sample, range(3)))
    left, strange = tmp_path / ".0.tar.idx-abcd_123.partial", tmp_path / ".photos.partial"
    left.touch()
    strange.touch()
    for file in (left, strange):
        os.utime(file, (0, 0))  # long ago
    assert TarReader(cache=str(tmp_path / "c")).write_indexes([shard], filters=Filters()).problems == ()
    assert not left.exists()
    assert strange.exists()


def test_zeros_in_place_of_the_last_samples_are_not_the_end(make_sample: MakeSample, tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    pack_tar(shard, map(make_sample, range(9)))
    data = shard.read_bytes()
    begin = data.index(b"000007.")
    shard.write_bytes(data[:begin].ljust(len(data), b"\0"))
    for filters in (Filters(), Filters(min_caption=1)):
        source = TarReader(cache=str(tmp_path / "cache"))([str(shard)], filters=filters)
        assert (read(source), source.skipped()) == (keys(range(7)), {"damaged_tar": 2})
    (tmp_path / "0.tar.idx").unlink()  # nobody knows any more
    source = TarReader(cache=str(tmp_path / "other"))([str(shard)], filters=Filters())
    assert (source.shard_sizes, source.skipped()) == ([7], {})
