"""Packing: usable samples become complete tar shards, and a second run goes on where the first stopped."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import webdataset
from PIL import Image
from pyarrow import parquet

import rfdit.commands.pack
from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.tar import pack
from rfdit.data.tar.source import TarReader
from tests.support.data.captioned import write_form
from tests.support.data.shards import numbered_sample, write_tar
from tests.support.servers.misbehaving_server import MisbehavingServer, encoded_image

Pack = Callable[..., str]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        yield server


@pytest.fixture
def table(server: MisbehavingServer) -> str:
    """Ten rows, of which 2, 5, 6 and 7 are dead."""
    paths = [
        "/ok/0",
        "/ok/1",
        "/not_found/2",
        "/png/3",
        "/ok/4",
        "/html/5",
        "/broken/6",
        "/bomb/7",
        "/ok/8",
        "/ok/9",
    ]
    rows = [
        {"URL": server.url(path), "TEXT": f"row {i}", "WIDTH": i, "HEIGHT": 5} for i, path in enumerate(paths)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), "table.parquet")
    return "table.parquet"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Pack:
    """Runs the command as from a shell, in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*overrides: str, data: str = "laion_urls") -> str:
        quick = [
            "data.reader.fetcher.allow_networks=[127.0.0.1]",
            "data.reader.fetcher.backoff=0.01",
            "data.reader.images=null",
        ]
        settings = ["out=packed", "samples_per_shard=4", f"data={data}", *quick, *overrides]
        monkeypatch.setattr(sys, "argv", ["pack", *settings])
        rfdit.commands.pack.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def table_in_folder(run: Pack, table: str) -> str:
    """The table, written where the command runs."""
    return table


def error(run: Pack, *overrides: str, **settings: Any) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*overrides, **settings)
    message = str(stopped.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message.removeprefix("error: ")


def samples(folder: str = "packed") -> list[dict[str, bytes]]:
    shards = [str(path) for path in sorted(Path(folder).glob("*.tar"))]
    return list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)) if shards else []


def captions(folder: str = "packed") -> list[str]:
    return [sample["txt"].decode() for sample in samples(folder)]


def names(folder: str = "packed") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


SURVIVORS = [f"row {i}" for i in (0, 1, 3, 4, 8, 9)]


def test_what_survives_is_packed_and_the_rest_reported(run: Pack, table_in_folder: str) -> None:
    said = run(f"data.shards={table_in_folder}")
    assert said.strip().splitlines()[-1].startswith("6 of 10 samples packed; left out: 1 fetch_not_found, 1 ")
    assert said.strip().endswith("they are in 3 shards in packed, and report.json counts the others")
    assert names() == [
        *(f"0000{i}.{ending}" for i in range(3) for ending in ("json", "tar", "tar.idx")),
        "pack.json",
        "pack.lock",
        "report.json",
    ]
    packed = samples()
    assert captions() == SURVIVORS
    assert packed[0]["jpg"] == encoded_image(0)
    assert packed[2]["png"] == encoded_image(3, "png")
    about = json.loads(packed[1]["json"])
    # What the table said of the size stays, and the truth stands beside it.
    assert (about["WIDTH"], about["width"], about["height"], about["URL"][-5:]) == (1, 32, 32, "/ok/1")
    assert [sample["__key__"] for sample in packed] == [f"0000000000000{i}" for i in (0, 1, 3, 4, 8, 9)]
    with tarfile.open("packed/00000.tar") as tar:
        assert tar.getnames()[:3] == ["00000000000000.jpg", "00000000000000.json", "00000000000000.txt"]
    report = json.loads(Path("packed/report.json").read_text())
    assert (report["samples"], report["packed"]) == (10, 6)
    assert report["left_out"] == {
        "fetch_not_found": 1,
        "fetch_not_an_image": 1,
        "fetch_server_error": 1,
        "image_too_large": 1,
    }


def test_without_verifying_what_cannot_be_decoded_stays(run: Pack, table_in_folder: str) -> None:
    run(f"data.shards={table_in_folder}", "verify=false")
    assert captions() == [*SURVIVORS[:4], "row 7", *SURVIVORS[4:]]
    assert "width" not in json.loads(samples()[0]["json"])


def test_filters_apply(run: Pack, table_in_folder: str) -> None:
    run(f"data.shards={table_in_folder}", "data.filters.min_size=4")
    assert captions() == ["row 4", "row 8", "row 9"]


def test_a_run_that_was_stopped_goes_on_and_repeats_nothing(
    run: Pack, table_in_folder: str, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable, calls = pack.usable, []

    def until_the_sixth(sample: Any, *, verify: bool) -> Any:
        calls.append(sample)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return usable(sample, verify=verify)

    monkeypatch.setattr(pack, "usable", until_the_sixth)
    with pytest.raises(SystemExit) as stopped:
        run(f"data.shards={table_in_folder}")
    assert stopped.value.code == 130
    assert names() == ["00000.json", "00000.tar", "00000.tar.idx", "pack.json", "pack.lock"]
    assert captions() == SURVIVORS[:3]
    before = Path("packed/00000.tar").stat()
    monkeypatch.setattr(pack, "usable", usable)
    server.contacts.clear()
    said = run(f"data.shards={table_in_folder}")
    assert "6 of 10 samples packed" in said
    assert captions() == SURVIVORS
    after = Path("packed/00000.tar").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert not {"/ok/0", "/ok/1", "/not_found/2", "/png/3"} & set(server.contacts)
    server.contacts.clear()
    assert "6 of 10 samples packed" in run(f"data.shards={table_in_folder}")  # there is nothing left to do
    assert server.contacts == []


def test_a_range_in_which_all_is_dead_has_no_shard_and_is_done(
    run: Pack, table_in_folder: str, server: MisbehavingServer
) -> None:
    said = run(f"data.shards={table_in_folder}", "samples_per_shard=1")
    assert "6 shards" in said
    assert len(list(Path("packed").glob("0*.json"))) == 10
    server.contacts.clear()
    run(f"data.shards={table_in_folder}", "samples_per_shard=1")
    assert server.contacts == []


def test_tars_are_packed_and_counted_as_samples(tmp_path: Path) -> None:
    samples = [numbered_sample(i) | ({"png": b"broken"} if i == 1 else {}) for i in range(3)]
    shard = write_tar(tmp_path / "0.tar", samples)
    source = TarReader(cache=str(tmp_path / "cache"))([shard], filters=Filters())
    out = tmp_path / "out"
    out.mkdir()
    said = pack.Packing(source=source, out=out, samples_per_shard=2, verify=True, plan={})()
    assert said.startswith("2 of 3 samples packed; left out: 1 corrupt_image; they are in 2 shards in ")
    report = json.loads((out / "report.json").read_text())
    assert report == {"samples": 3, "packed": 2, "left_out": {"corrupt_image": 1}}


def test_another_packing_does_not_go_into_the_same_folder(run: Pack, table_in_folder: str) -> None:
    run(f"data.shards={table_in_folder}")
    message = error(run, f"data.shards={table_in_folder}", "samples_per_shard=5", "data.filters.min_size=4")
    assert message == (
        "out=packed was packed with other filters, samples, samples_per_shard, as its pack.json says; "
        "give another out"
    )
    Path("mine").mkdir()
    Path("mine/00000.tar").touch()
    message = error(run, f"data.shards={table_in_folder}", "out=mine")
    assert message == "out=mine already has shards that were not packed here; give another out"


@pytest.mark.slow
def test_what_is_missing_or_wrong_is_named(run: Pack, table_in_folder: str) -> None:
    shards = f"data.shards={table_in_folder}"
    assert error(run) == "data.shards is not set; give data.shards=..."
    assert error(run, shards, "out=???") == "out is not set; give out=..."
    assert error(run, shards, "samples_per_shard=0") == "samples_per_shard=0 must be at least 1"
    assert error(run, shards, "data.reader.ahed=3").startswith(
        "data.reader.ahed is not a setting; did you mean data.reader.ahead"
    )
    assert error(run, shards, "~data.reader") == (
        "data.reader is not set; packing needs data.shards, data.reader and data.filters"
    )
    assert "data.reader.fetcher.per_host='x' is a text" in error(
        run, shards, "data.reader.fetcher.per_host=x"
    )


def test_an_outage_leaves_the_shard_for_the_next_call(run: Pack, tmp_path: Path) -> None:
    rows = [{"URL": f"http://127.0.0.1:9/{i}.jpg", "TEXT": "a"} for i in range(3)]
    parquet.write_table(pa.Table.from_pylist(rows), "away.parquet")
    message = error(run, "data.shards=away.parquet", "out=packed")
    assert "none of the 3 URLs of shard 0 could be reached" in message
    assert not list(Path("packed").glob("0*"))


def test_a_changed_table_is_not_a_continuation(run: Pack, table_in_folder: str) -> None:
    run(f"data.shards={table_in_folder}")
    os.utime(table_in_folder, (1, 1))
    assert error(run, f"data.shards={table_in_folder}").startswith("out=packed was packed with other shards")


@pytest.mark.parametrize("damaged", [b"{broken", b"[1]", b"\xff"])
def test_damaged_metadata_is_left_behind(damaged: bytes) -> None:
    jpeg = encoded_image(0)
    files = pack.usable({"__key__": "0", "jpg": jpeg, "json": damaged}, verify=True)
    assert json.loads(files["json"]).keys() == {"height", "width"}


def test_samples_of_any_source_are_measured_as_they_are_seen() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.new("RGB", (40, 20)).save(data, "jpeg", exif=exif)
    sample = {"__key__": "0", "jpg": data.getvalue(), "json": b'{"a": 1}', "cls": b"3"}
    found = pack.usable(sample, verify=True)
    assert json.loads(found["json"]) == {"a": 1, "width": 20, "height": 40}
    assert found | {"json": b""} == sample | {"json": b""}
    assert pack.usable({"__key__": "0", "jpg": data.getvalue()}, verify=True).keys() == {"__key__", "jpg"}
    with pytest.raises(SkippedSampleError, match="missing_image"):
        pack.usable({"__key__": "0", "txt": b"x"}, verify=True)
    with pytest.raises(SkippedSampleError, match="corrupt_image"):
        pack.usable({"__key__": "0", "jpg": data.getvalue()[:-200]}, verify=True)
    with pytest.raises(SkippedSampleError, match="fetch_hash"):
        pack.usable(SkippedSampleError(SkipReason.FETCH_HASH), verify=True)


def test_what_is_not_whole_is_packed_again(run: Pack, table_in_folder: str) -> None:
    def packed() -> dict[str, bytes]:
        """The files whose bytes are those of the samples: an index holds the time too."""
        return {name: Path("packed", name).read_bytes() for name in names() if name.endswith(("json", "tar"))}

    run(f"data.shards={table_in_folder}", "samples_per_shard=4")
    whole = packed()
    for name in ("00001.json", "00001.tar"):
        changed = whole[name][:100] + b"?" + whole[name][101:]
        for damaged in (b"", whole[name][:-20], changed):
            Path("packed", name).write_bytes(damaged)
            run(f"data.shards={table_in_folder}", "samples_per_shard=4")
            assert packed() == whole
    Path("packed/pack.json").write_bytes(whole["pack.json"][:-20])
    message = error(run, f"data.shards={table_in_folder}", "samples_per_shard=4")
    assert message.startswith("out=packed cannot be continued: packed/pack.json is damaged or was edited")


def test_two_packers_do_not_share_a_folder(
    run: Pack, table_in_folder: str, server: MisbehavingServer, tmp_path: Path
) -> None:
    hold = "import time\nfrom pathlib import Path\nfrom rfdit.storage.locks import only_process\n"
    hold += "with only_process(Path('packed/pack.lock'), setting='out'):\n"
    hold += "    print('held', flush=True)\n    time.sleep(600)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = error(run, f"data.shards={table_in_folder}")
        assert message == (
            f"out=packed is in use by process {other.pid} on {socket.gethostname()}; let it finish, or give "
            "another out"
        )
        assert names() == ["pack.lock"]
        assert server.contacts == []
        other.kill()
    # What was killed holds nothing.
    assert "6 of 10 samples packed" in run(f"data.shards={table_in_folder}")


def test_folders_are_packed_with_all_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_form("texts", Path("own"), ["one\ntwo", "three", "four"])
    Path("own/02.png").write_bytes(b"broken")
    settings = ["data=folder", "data.shards=own", "data.reader.captions_by_line=true", "out=packed"]
    monkeypatch.setattr(sys, "argv", ["pack", *settings])
    rfdit.commands.pack.main()
    assert "2 of 3 samples packed; left out: 1 corrupt_image" in capsys.readouterr().out
    source = TarReader()(["packed/00000.tar"], filters=Filters())
    drawing = SampleDecoder(caption_key="json.captions", draw_caption=True)
    samples = [
        drawing(raw, (8, 8)) for raw in source.samples(range(2)) if not isinstance(raw, SkippedSampleError)
    ]
    assert [(sample.caption, list(sample.captions)) for sample in samples] == [
        ("one", ["one", "two"]),
        ("three", ["three"]),
    ]
