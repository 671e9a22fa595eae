"""Packing: what survives becomes whole tar shards, and a second run goes on where the first stopped."""

import io
import json
import os
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

from rfdit.data import pack
from rfdit.data.skips import SkippedSampleError, SkipReason
from tests.data.misbehaving_server import MisbehavingServer, picture

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
        pack.main()
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
    assert "10/10" in said
    assert said.strip().splitlines()[-1].startswith("6 of 10 URLs alive; dead: 1 fetch_not_found, 1 ")
    assert said.strip().endswith("they are in 3 shards in packed, and rot.json tells of the dead")
    assert names() == [
        *(f"0000{i}.{ending}" for i in range(3) for ending in ("json", "tar", "tar.idx")),
        "pack.json",
        "pack.lock",
        "rot.json",
    ]
    packed = samples()
    assert captions() == SURVIVORS
    assert packed[0]["jpg"] == picture(0)
    assert packed[2]["png"] == picture(3, "png")
    about = json.loads(packed[1]["json"])
    # What the table said of the size stays, and the truth stands beside it.
    assert (about["WIDTH"], about["width"], about["height"], about["URL"][-5:]) == (1, 32, 32, "/ok/1")
    assert [sample["__key__"] for sample in packed] == [f"0000000000000{i}" for i in (0, 1, 3, 4, 8, 9)]
    with tarfile.open("packed/00000.tar") as tar:
        assert tar.getnames()[:3] == ["00000000000000.jpg", "00000000000000.json", "00000000000000.txt"]
    report = json.loads(Path("packed/rot.json").read_text())
    assert (report["urls"], report["alive"]) == (10, 6)
    assert report["dead"] == {
        "fetch_not_found": 1,
        "fetch_not_an_image": 1,
        "fetch_server_error": 1,
        "image_too_large": 1,
    }
    assert report["worst_hosts"] == {
        "127.0.0.1": {"dead": 3, "fetch_not_found": 1, "fetch_not_an_image": 1, "fetch_server_error": 1}
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
    assert "6 of 10 URLs alive" in said
    assert captions() == SURVIVORS
    after = Path("packed/00000.tar").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert not {"/ok/0", "/ok/1", "/not_found/2", "/png/3"} & set(server.contacts)
    server.contacts.clear()
    assert "6 of 10 URLs alive" in run(f"data.shards={table_in_folder}")  # there is nothing left to do
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
    assert message == "out=mine has shards already that were not packed here; give another out"


def test_what_is_missing_or_wrong_is_named(run: Pack, table_in_folder: str) -> None:
    shards = f"data.shards={table_in_folder}"
    assert error(run) == "data.shards is not set; give data.shards=..."
    assert error(run, shards, "out=???") == "out is not set; give out=..."
    assert error(run, shards, "samples_per_shard=0") == "samples_per_shard=0 must be at least 1"
    assert error(run, shards, "data.reader.ahed=3").startswith(
        "data.reader.ahed is no setting; did you mean data.reader.ahead"
    )
    assert error(run, shards, "~data.reader") == (
        "data.reader is not set; packing needs data.shards, data.reader and data.filters"
    )
    assert "data.reader.fetcher.per_host='x' is a str" in error(run, shards, "data.reader.fetcher.per_host=x")


def test_an_outage_leaves_the_shard_for_the_next_call(run: Pack, tmp_path: Path) -> None:
    rows = [{"URL": f"http://127.0.0.1:9/{i}.jpg", "TEXT": "a"} for i in range(3)]
    parquet.write_table(pa.Table.from_pylist(rows), "away.parquet")
    message = error(run, "data.shards=away.parquet", "out=packed")
    assert "of the 3 URLs of shard 0 none could be reached" in message
    assert not list(Path("packed").glob("0*"))


def test_a_changed_table_is_no_continuation(run: Pack, table_in_folder: str) -> None:
    run(f"data.shards={table_in_folder}")
    os.utime(table_in_folder, (1, 1))
    assert error(run, f"data.shards={table_in_folder}").startswith("out=packed was packed with other shards")


@pytest.mark.parametrize("damaged", [b"{broken", b"[1]", b"\xff"])
def test_damaged_metadata_is_left_behind(damaged: bytes) -> None:
    jpeg = picture(0)
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


def test_two_packers_do_not_share_a_folder(
    run: Pack, table_in_folder: str, server: MisbehavingServer, tmp_path: Path
) -> None:
    hold = "import sys, time\nfrom pathlib import Path\nfrom rfdit.data.pack import only_packer\n"
    hold += "with only_packer(Path('packed')):\n    print('held', flush=True)\n    time.sleep(600)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = error(run, f"data.shards={table_in_folder}")
        assert message == (
            "out=packed is being packed by another process; let it finish, or give another out"
        )
        assert names() == ["pack.lock"]
        assert server.contacts == []
        other.kill()
    # What was killed holds nothing.
    assert "6 of 10 URLs alive" in run(f"data.shards={table_in_folder}")
