"""The command that writes indexes: where to, what it says, and that it goes on."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rfdit.data import index
from rfdit.data.filters import Filters
from rfdit.data.tar_source import TarReader
from tests.data.counting_server import Handler, counting_server

Command = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the command as from a shell, in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["index", *overrides])
        index.main()
        return capsys.readouterr().out

    return run


def error(run: Command, *overrides: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*overrides)
    message = str(stopped.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message.removeprefix("error: ")


def test_indexes_are_written_once_and_again_after_a_change(
    run: Command, write_numbered: Callable[[Sequence[int]], list[str]], tmp_path: Path
) -> None:
    shards = write_numbered([3, 4])
    assert run(f"data.shards={tmp_path}") == "2 shards have an index beside them\n"
    places = [Path(f"{shard}.idx") for shard in shards]
    before = [place.stat().st_mtime_ns for place in places]
    write_numbered([5])
    run(f"data.shards={tmp_path}")
    after = [place.stat().st_mtime_ns for place in places]
    assert (before[0] < after[0], before[1] == after[1]) == (True, True)


def test_filters_and_image_sizes_have_indexes_of_their_own(
    run: Command, write_numbered: Callable[[Sequence[int]], list[str]], tmp_path: Path
) -> None:
    names = [Path(shard).name for shard in write_numbered([12])]
    run(f"data.shards={tmp_path}")
    run(f"data.shards={tmp_path}", "data.filters.min_caption=9", "image_sizes=true")
    assert len(list(tmp_path.glob("000.tar*.idx"))) == 2
    with counting_server(tmp_path) as url:
        shards, reader = [f"{url}/{name}" for name in names], TarReader(cache="other")
        assert reader(shards, filters=Filters()).shard_sizes == [12]
        both = reader(shards, filters=Filters(min_caption=9), image_sizes=True)
        assert (both.shard_sizes, both.skipped()) == ([2], {"filtered_caption": 10})
        assert both.image_sizes().tolist() == [[8, 8]] * 2
        assert Handler.asked["000.tar"] == 0


def test_remote_shards_need_a_folder(
    run: Command, write_numbered: Callable[[Sequence[int]], list[str]], tmp_path: Path
) -> None:
    write_numbered([3, 4])
    with counting_server(tmp_path) as url:
        shards = f'data.shards="{url}/{{000..001}}.tar"'
        assert error(run, shards).startswith(
            "out is not set; give a folder, since indexes cannot be written beside http"
        )
        assert run(shards, "out=indexes") == "2 shards have an index in indexes\n"
        Handler.asked.clear()
        run(shards, "out=indexes")
        assert not Handler.asked  # both are there
        assert TarReader(cache="other", index="indexes")(
            [f"{url}/00{n}.tar" for n in range(2)], filters=Filters()
        ).shard_sizes == [3, 4]
        assert not Handler.asked
    assert sorted(path.name for path in Path("indexes").iterdir()) == ["000.tar.idx", "001.tar.idx"]


def test_what_is_wrong_is_named(
    run: Command, write_numbered: Callable[[Sequence[int]], list[str]], tmp_path: Path
) -> None:
    (shard,) = write_numbered([3])
    (tmp_path / "x").mkdir()
    (tmp_path / "x/000.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    assert error(run) == "data.shards is not set; give data.shards=..."
    assert error(run, f"data.shards={shard}", "data=laion_urls").startswith(
        "data.reader=UrlTables reads no tar shards; use data=laion"
    )
    assert error(run, f"data.shards=[{shard},x/000.tar]", "out=o").startswith(
        "out=o: 2 shards would have the index o/000.tar.idx"
    )
    assert error(run, "data.shards=x").startswith(
        "data.shards: 1 of 1 have no index, the first: x/000.tar is compressed by gzip"
    )
    assert error(run, f"data.shards={shard}", "out=/proc/nope").startswith(
        "out=/proc/nope: /proc/nope/000.tar.idx"
    )
    assert error(run, f"data.shards={shard}", "out=s3://b/c").startswith(
        "out=s3://b/c is no folder of this machine"
    )
    assert "data.reader.spool is no setting of TarReader; did you mean spool_gb" in error(
        run, f"data.shards={shard}", "+data.reader.spool=1"
    )
