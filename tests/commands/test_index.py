"""The command that writes indexes: its targets and messages, and going on after a stop."""

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rfdit.data.filters import Filters
from rfdit.data.tar.source import TarReader
from tests.support.commands.command_line import CommandLine
from tests.support.data.shards import numbered_sample, write_tar
from tests.support.servers.counting_server import Handler, counting_server


@pytest.fixture
def cli(cli: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CommandLine:
    """The command line with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cli


def test_indexes_are_written_once_and_again_after_a_change(
    cli: CommandLine, write_numbered: Callable[[Sequence[int]], list[str]], tmp_path: Path
) -> None:
    shards = write_numbered([3, 4])
    assert (
        cli.index(f"data.shards={tmp_path}")
        == "indexed 2 shards of 7 samples in all, with the index beside each\n"
    )
    places = [Path(f"{shard}.idx") for shard in shards]
    before = [place.stat().st_mtime_ns for place in places]
    write_numbered([5])
    cli.index(f"data.shards={tmp_path}")
    after = [place.stat().st_mtime_ns for place in places]
    assert (before[0] < after[0], before[1] == after[1]) == (True, True)


def test_filters_and_image_sizes_have_indexes_of_their_own(
    cli: CommandLine, write_numbered: Callable[[Sequence[int]], list[str]], tmp_path: Path
) -> None:
    names = [Path(shard).name for shard in write_numbered([12])]
    cli.index(f"data.shards={tmp_path}")
    cli.index(f"data.shards={tmp_path}", "data.filters.min_caption=9", "image_sizes=true")
    assert len(list(tmp_path.glob("000.tar*.idx"))) == 2
    with counting_server(tmp_path) as url:
        shards, reader = [f"{url}/{name}" for name in names], TarReader(cache="other")
        assert reader(shards, filters=Filters()).shard_sizes == [12]
        both = reader(shards, filters=Filters(min_caption=9), image_sizes=True)
        assert (both.shard_sizes, both.skipped()) == ([2], {"filtered_caption": 10})
        assert both.image_sizes().tolist() == [[8, 8]] * 2
        assert Handler.requests["000.tar"] == 0


def test_what_is_left_out_is_told(cli: CommandLine, tmp_path: Path) -> None:
    captions = ["a cat", "a very long caption", ""]
    samples = (numbered_sample(i) | {"txt": caption.encode()} for i, caption in enumerate(captions))
    shard = write_tar(tmp_path / "0.tar", samples)
    (tmp_path / "README").write_text("read me")
    with tarfile.open(shard, "a") as tar:
        tar.add(tmp_path / "README", "README")
    command = [f"data.shards={shard}", "data.filters.max_caption=9"]
    said = cli.index(*command)
    assert said == (
        "indexed 1 shard of 1 sample in all, with the index beside each; left out: 1 empty_caption, "
        "1 filtered_caption, 1 no_extension\nno_extension: a name needs an extension that says what the file is\n"
    )
    assert cli.index(*command) == said  # of an index that is there


def test_remote_shards_need_a_folder(
    cli: CommandLine, write_numbered: Callable[[Sequence[int]], list[str]], tmp_path: Path
) -> None:
    write_numbered([3, 4])
    with counting_server(tmp_path) as url:
        shards = f'data.shards="{url}/{{000..001}}.tar"'
        assert cli.error("index", shards).startswith(
            "out is not set; give a folder, since indexes cannot be written beside http"
        )
        assert (
            cli.index(shards, "out=indexes")
            == "indexed 2 shards of 7 samples in all, with the index in indexes\n"
        )
        Handler.requests.clear()
        cli.index(shards, "out=indexes")
        assert not Handler.requests  # both are there
        assert TarReader(cache="other", index="indexes")(
            [f"{url}/00{n}.tar" for n in range(2)], filters=Filters()
        ).shard_sizes == [3, 4]
        assert not Handler.requests
    assert sorted(path.name for path in Path("indexes").iterdir()) == ["000.tar.idx", "001.tar.idx"]


def test_what_is_wrong_is_named(
    cli: CommandLine, write_numbered: Callable[[Sequence[int]], list[str]], tmp_path: Path
) -> None:
    (shard,) = write_numbered([3])
    (tmp_path / "x").mkdir()
    (tmp_path / "x/000.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    assert cli.error("index") == "data.shards is not set; give data.shards=..."
    assert cli.error("index", f"data.shards={shard}", "data=laion_urls").startswith(
        "data.reader=UrlTables does not read tar shards; use data=laion"
    )
    assert cli.error("index", f"data.shards=[{shard},x/000.tar]", "out=o").startswith(
        "out=o: 2 shards would have the index o/000.tar.idx"
    )
    assert cli.error("index", "data.shards=x").startswith(
        "data.shards: 1 of 1 have no index, the first: x/000.tar is compressed with gzip"
    )
    assert cli.error("index", f"data.shards={shard}", "out=/proc/nope").startswith(
        "out=/proc/nope: /proc/nope/000.tar.idx"
    )
    assert cli.error("index", f"data.shards={shard}", "out=s3://b/c").startswith(
        "out=s3://b/c is not a folder of this machine"
    )
    assert "data.reader.spool is not a setting of TarReader; did you mean spool_gb" in cli.error(
        "index", f"data.shards={shard}", "+data.reader.spool=1"
    )
