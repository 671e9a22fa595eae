"""Tables of URLs as a source: numbering, filters, caching, and the handling of dead URLs."""

import hashlib
import itertools
import json
import math
import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.source import Reader, Source
from rfdit.data.tables import table as tables
from rfdit.data.urls.dead_links import DeadLinks
from rfdit.data.urls.fetch import Fetcher
from rfdit.data.urls.source import UrlSource, UrlTables
from rfdit.storage.disk_cache import DiskCache
from tests.support.servers.misbehaving_server import MisbehavingServer, encoded_image

Rows = Sequence[Mapping[str, Any]]
ALL = Filters()


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        yield server


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as parquet, three to a row group, or as JSON lines; returns the path."""

    def write(rows: Rows, name: str = "table.parquet") -> str:
        path = tmp_path / name
        if name.endswith(".parquet"):
            parquet.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=3)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def patient(seconds: float) -> Fetcher:
    """Requests that wait so long for a server; more than any that answers takes."""
    return Fetcher(
        allow_networks=["127.0.0.1"], per_host=64, read_timeout=seconds, total_timeout=seconds, backoff=0.01
    )


@pytest.fixture
def make_reader(tmp_path: Path) -> Callable[..., UrlTables]:
    def make(**settings: Any) -> UrlTables:
        return UrlTables(**({"fetcher": patient(120.0), "index_folder": str(tmp_path / "index")} | settings))

    return make


@pytest.fixture
def reader(make_reader: Callable[..., UrlTables]) -> UrlTables:
    return make_reader()


def rows_of(server: MisbehavingServer, paths: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"URL": server.url(path), "TEXT": f"row {i}", "WIDTH": 100 + i, "HEIGHT": 50, "aesthetic": i / 2}
        for i, path in enumerate(paths)
    ]


def good(server: MisbehavingServer, count: int) -> list[dict[str, Any]]:
    return rows_of(server, [f"/ok/{i}" for i in range(count)])


def captions(source: Source, numbers: Sequence[int] | range) -> list[str | SkipReason]:
    return [
        found.reason if isinstance(found, SkippedSampleError) else bytes(found["txt"]).decode()
        for found in source.samples(numbers)
    ]


@pytest.mark.parametrize("name", ["table.parquet", "table.jsonl"])
def test_rows_become_samples(
    server: MisbehavingServer, write_table: Any, reader: UrlTables, name: str
) -> None:
    rows = [row | {"similarity": float("nan")} for row in good(server, 4)]
    rows[2]["URL"] = server.url("/png/2")
    source = reader([write_table(rows, name)], filters=ALL)
    assert isinstance(reader, Reader)
    assert isinstance(source, Source)
    found = list(source.samples([2, 0]))
    assert [sample["__key__"] for sample in found] == ["00000000000002", "00000000000000"]
    assert list(found[0]) == ["__key__", "png", "json", "txt"]
    assert found[0]["png"] == encoded_image(2, "png")
    assert found[1]["jpg"] == encoded_image(0)
    about = json.loads(found[0]["json"], parse_constant=pytest.fail)
    assert about["URL"] == server.url("/png/2")
    assert about["sha256"] == hashlib.sha256(encoded_image(2, "png")).hexdigest()
    assert (about["WIDTH"], about["similarity"]) == (102, None)
    sample = SampleDecoder()(found[1], (8, 8))
    assert (sample.caption, sample.key) == ("row 0", "00000000000000")
    source.close()


def test_numbers_run_through_tables_and_shards_are_what_is_read_at_once(
    server: MisbehavingServer, write_table: Any, reader: UrlTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LINES", 4)
    rows = good(server, 15)
    shards = [write_table(rows[:7]), write_table([], "empty.jsonl"), write_table(rows[7:], "b.jsonl")]
    source = reader(shards, filters=ALL)
    assert list(source.shard_sizes) == [3, 3, 1, 4, 4]
    order = np.random.default_rng(0).permutation(15).tolist()
    assert captions(source, order) == [f"row {i}" for i in order]
    keys = [sample["__key__"] for sample in source.samples([6, 7, 14])]
    assert keys == ["00000000000006", "00002000000000", "00002000000007"]


@pytest.mark.parametrize("name", ["table.parquet", "table.jsonl"])
def test_filters_choose_rows_when_the_table_is_opened(
    server: MisbehavingServer, write_table: Any, reader: UrlTables, name: str
) -> None:
    rows = good(server, 10)
    rows[7]["aesthetic"] = None
    path = write_table(rows, name)
    filters = Filters(min_aesthetic=2.0, max_aspect=2.16, min_caption=3)
    source = reader([path], filters=filters, image_sizes=True)
    assert captions(source, range(4)) == ["row 4", "row 5", "row 6", "row 8"]
    assert [sample["__key__"][-1] for sample in source.samples([3, 2])] == ["8", "6"]
    assert source.skipped() == {"filtered_aspect": 1, "filtered_aesthetic": 4, "unknown_aesthetic": 1}
    assert source.image_sizes().tolist() == [[50, 104], [50, 105], [50, 106], [50, 108]]
    # Nothing of the kept index is used for other filters, and the same again is read from it.
    assert sum(reader([path], filters=ALL).shard_sizes) == 10
    again = reader([path], filters=filters, image_sizes=True)
    assert (again.shard_sizes, again.skipped()) == (source.shard_sizes, source.skipped())
    # What is damaged is made anew.
    for file in [file for file in reader.folder.iterdir() if file.is_file()]:
        whole = file.read_bytes()
        for damaged in (b"", whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
            file.write_bytes(damaged)
            again = reader([path], filters=filters, image_sizes=True)
            assert (again.skipped(), captions(again, range(4))) == (
                source.skipped(),
                captions(source, range(4)),
            )
        if file.suffix == ".npy":
            file.unlink()
            assert captions(reader([path], filters=filters, image_sizes=True), [3]) == ["row 8"]


def test_only_the_columns_that_filters_need_are_read(
    server: MisbehavingServer, write_table: Any, reader: UrlTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Sequence[str] | None] = []
    load = tables.ParquetTable.load

    def spy(self: tables.ParquetTable, piece: tables.Piece, columns: Sequence[str] | None = None) -> pa.Table:
        read.append(columns)
        return load(self, piece, columns)

    monkeypatch.setattr(tables.ParquetTable, "load", spy)
    path = write_table(good(server, 3))
    reader([path], filters=ALL)
    assert read == []
    reader([path], filters=Filters(min_aesthetic=0.1, columns={"aesthetic": "aesthetic"}))
    reader([path], filters=Filters(min_size=10, max_caption=50))
    assert read == [["aesthetic"], ["WIDTH", "HEIGHT", "TEXT"]]
    reader([path], filters=Filters(min_size=10, max_caption=50))
    assert len(read) == 2
    with open(path, "ab") as file:  # another file of the same name is indexed anew
        file.write(b"")
    write_table(good(server, 6))
    assert sum(reader([path], filters=Filters(min_size=10, max_caption=50)).shard_sizes) == 6


def test_sizes_are_known_only_if_asked_for(
    server: MisbehavingServer, write_table: Any, reader: UrlTables
) -> None:
    rows = good(server, 4)
    rows[1]["WIDTH"] = None
    path = write_table(rows)
    with pytest.raises(ValueError, match="open it with image_sizes=True"):
        reader([path], filters=ALL).image_sizes()
    source = reader([path], filters=ALL, image_sizes=True)
    assert source.image_sizes().tolist() == [[50, 100], [50, 102], [50, 103]]
    assert source.skipped() == {"unknown_size": 1}


def test_impossible_numbers_of_a_table_are_counted(
    server: MisbehavingServer, write_table: Any, reader: UrlTables
) -> None:
    rows = good(server, 9)
    for row, width in zip(rows, (100, 100.0, math.inf, 1e308, 99.5, -1, 0, math.nan, None), strict=True):
        row["WIDTH"] = width
    source = reader([write_table(rows)], filters=ALL, image_sizes=True)
    assert source.image_sizes().tolist() == [[50, 100], [50, 100]]
    assert source.skipped() == {"invalid_size": 5, "unknown_size": 2}


def test_columns_can_have_other_names(server: MisbehavingServer, write_table: Any, make_reader: Any) -> None:
    path = write_table([{"link": server.url("/ok/1"), "says": "a cat"}])
    with pytest.raises(
        ValueError, match=r"table\.parquet has no column URL or url of URLs; it has link, says; give"
    ):
        make_reader()([path], filters=ALL)
    source = make_reader(columns={"url": "link", "caption": "says"})([path], filters=ALL)
    assert captions(source, [0]) == ["a cat"]
    with pytest.raises(
        ValueError, match=r"data\.reader\.columns\.link is not a column that is read; use url"
    ):
        make_reader(columns={"link": "url"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"keys": ["txt"]},
            r"no column TEXT or caption or text of captions; it has URL, ALT, class; give data\.",
        ),
        ({"keys": ["json.title"]}, r"json\.title is not in the samples of .*; it has URL, ALT, class$"),
        (
            {"keys": [None, "cls"]},
            r"cls is not in the samples of .*, which have txt, and json\.COLUMN for each",
        ),
        ({"columns": {"md5": "hash"}}, r"columns\.md5=hash is not a column of .*; it has URL, ALT, class$"),
    ],
)
@pytest.mark.parametrize("name", ["table.parquet", "table.jsonl"])
def test_columns_that_are_missing_are_told_before_anything_is_fetched(
    server: MisbehavingServer, write_table: Any, make_reader: Any, settings: Any, message: str, name: str
) -> None:
    row = {"URL": server.url("/ok/1"), "ALT": "a cat"}
    path = write_table([row, row | {"class": 3}] if name.endswith("jsonl") else [row | {"class": 3}], name)
    with pytest.raises(ValueError, match=message):
        make_reader(**settings)([path], filters=ALL)
    make_reader(columns={"caption": "ALT"}, keys=["txt", "json.class", None])([path], filters=ALL)


@pytest.mark.slow
def test_64_rows_of_which_a_third_are_dead(
    server: MisbehavingServer, write_table: Any, make_reader: Any, tmp_path: Path
) -> None:
    bad = ["not_found", "broken", "never", "drip", "html", "truncated", "loop"]
    paths = [f"/{bad[i // 9]}/{i}" if i % 3 == 0 else f"/together/{i}" for i in range(63)] + ["/together/63"]
    server.together = 43 + 6  # the live ones are sent only side by side with those that never end
    reader = make_reader(fetcher=patient(10.0), dead_links=DeadLinks(folder=str(tmp_path / "dead_links")))
    source = reader([write_table(rows_of(server, paths))], filters=ALL)
    found = captions(source, range(64))
    assert [text for text in found if text.startswith("row")] == [
        f"row {i}" for i in range(64) if i % 3 or i == 63
    ]
    assert server.busiest >= server.together
    counts = reader.dead_links.counts()
    assert counts.alive == 43
    assert counts.dead == {
        "fetch_not_found": 3,
        "fetch_server_error": 3,
        "fetch_timeout": 6,
        "fetch_not_an_image": 3,
        "fetch_truncated": 3,
        "fetch_redirects": 3,
    }
    reader.dead_links._report()
    report = json.loads((tmp_path / "dead_links/dead_links.json").read_text())
    assert (report["urls"], report["alive"], report["alive_share"]) == (64, 43, 0.6719)


def test_numbers_may_be_endless_and_are_taken_only_so_far_ahead(
    server: MisbehavingServer, write_table: Any, make_reader: Any
) -> None:
    source = make_reader(ahead=5)([write_table(good(server, 3))], filters=ALL)
    taken = []

    def numbers() -> Iterator[int]:
        for i in itertools.cycle(range(3)):
            taken.append(i)
            yield i

    samples = source.samples(numbers())
    assert [next(samples)["txt"] for _ in range(4)] == [b"row 0", b"row 1", b"row 2", b"row 0"]
    assert len(taken) == 8
    samples.close()
    for name, value, least in (("ahead", 0, 1), ("ahead_bytes", 0, 1), ("retry_after", -1.0, 0)):
        with pytest.raises(ValueError, match=rf"data\.reader\.{name}={value} must be at least {least}"):
            make_reader(**{name: value})


def test_a_slow_url_that_is_due_lets_the_others_go_on(
    server: MisbehavingServer, write_table: Any, make_reader: Any
) -> None:
    path = write_table(rows_of(server, ["/never/0", *(f"/ok/{i}" for i in range(1, 30))]))
    source = make_reader(fetcher=patient(5.0))([path], filters=ALL)
    samples = source.samples(range(30))
    assert isinstance(next(samples), SkippedSampleError)
    contacted = len(server.contacts)
    assert contacted >= 30
    assert len(list(samples)) == 29
    assert len(server.contacts) == contacted


def test_what_was_fetched_is_kept(
    server: MisbehavingServer, write_table: Any, make_reader: Any, tmp_path: Path
) -> None:
    reader = make_reader(images=DiskCache(folder=str(tmp_path / "images"), max_bytes=10**6))
    source = reader([write_table(rows_of(server, ["/ok/0", "/not_found/1", "/ok/2"]))], filters=ALL)
    first = captions(source, range(3))
    assert first == ["row 0", SkipReason.FETCH_NOT_FOUND, "row 2"]
    assert captions(source, range(3)) == first
    assert sorted(server.contacts) == ["/not_found/1", "/ok/0", "/ok/2"]
    for path in (tmp_path / "images").glob("??/*"):  # damaged entries are fetched again
        if path.suffix != ".b2" and path.name != "lock":
            path.write_bytes(b"damaged")
    assert captions(source, range(3)) == first
    assert server.contacts.count("/ok/0") == 2


def test_a_cache_without_room_stops_nothing(
    server: MisbehavingServer, write_table: Any, make_reader: Any, tmp_path: Path
) -> None:
    reader = make_reader(images=DiskCache(folder=str(tmp_path / "images"), max_bytes=10))
    source = reader([write_table(good(server, 1))], filters=ALL)
    with pytest.warns(UserWarning, match=r"data\.reader\.images: .* do not fit into a cache of 10"):
        assert captions(source, [0]) == ["row 0"]


def test_digests_in_the_table_are_compared(
    server: MisbehavingServer, write_table: Any, make_reader: Any
) -> None:
    rows = good(server, 3)
    for row, digest in zip(rows, [hashlib.md5(encoded_image(0)).hexdigest(), "0" * 32, None]):
        row["md5"] = digest
    path = write_table(rows)
    assert captions(make_reader()([path], filters=ALL), range(3)) == ["row 0", SkipReason.FETCH_HASH, "row 2"]
    loose = make_reader(check_digests=False)([path], filters=ALL)
    assert captions(loose, range(3)) == ["row 0", "row 1", "row 2"]


def test_digests_from_another_column_begin_anew(
    server: MisbehavingServer, write_table: Any, make_reader: Any, tmp_path: Path
) -> None:
    rows = good(server, 3)
    for i, row in enumerate(rows):
        row["md5"], row["of_image"] = "of the caption", hashlib.md5(encoded_image(i)).hexdigest()
    path, folder = write_table(rows), str(tmp_path / "dead_links")
    found = captions(make_reader(dead_links=DeadLinks(folder=folder))([path], filters=ALL), range(3))
    assert found == [SkipReason.FETCH_HASH] * 3
    reader = make_reader(dead_links=DeadLinks(folder=folder), columns={"md5": "of_image"})
    assert captions(reader([path], filters=ALL), range(3)) == ["row 0", "row 1", "row 2"]


def test_the_report_is_of_the_tables_that_are_read_now(
    server: MisbehavingServer, write_table: Any, make_reader: Any, tmp_path: Path
) -> None:
    path = write_table(rows_of(server, ["/ok/0", "/not_found/1", "/not_found/2", "/ok/3"]))

    def report(*filters: Filters) -> str:
        reader = make_reader(dead_links=DeadLinks(folder=str(tmp_path / "dead_links")))
        for each in filters:
            captions(reader([path], filters=each), range(2))
        return reader.dead_links.counts().summary()

    alone = "1 of 2 URLs alive; dead: 1 fetch_not_found"
    assert report(ALL) == alone
    assert report(Filters(max_caption=100)) == alone
    assert report(ALL) == alone  # as it was
    assert report(ALL, Filters(max_caption=100)) == "2 of 4 URLs alive; dead: 2 fetch_not_found"


def test_rows_that_say_too_little(server: MisbehavingServer, write_table: Any, reader: UrlTables) -> None:
    rows = good(server, 3)
    rows[0]["URL"], rows[1]["TEXT"] = None, None
    source = reader([write_table(rows)], filters=ALL)
    missing, silent, whole = source.samples(range(3))
    assert isinstance(missing, SkippedSampleError)
    assert missing.reason == SkipReason.MISSING_IMAGE
    assert "txt" not in silent
    with pytest.raises(SkippedSampleError, match="missing_caption"):
        SampleDecoder()(silent, (8, 8))
    assert "txt" in whole


def test_captions_in_lists_and_text_as_bytes_are_read(
    server: MisbehavingServer, write_table: Any, reader: UrlTables
) -> None:
    rows = good(server, 2)
    for row in rows:
        row["URL"], row["TEXT"] = row["URL"].encode(), [None, " ", row["TEXT"], "another"]
    assert captions(reader([write_table(rows)], filters=ALL), range(2)) == ["row 0", "row 1"]


def test_damaged_lines_are_counted_or_skipped(
    server: MisbehavingServer, write_table: Any, reader: UrlTables
) -> None:
    path = write_table(good(server, 3), "table.jsonl")
    lines = Path(path).read_bytes().splitlines()
    Path(path).write_bytes(b"\n".join([lines[0], b"", b"[1]", lines[1][:20], lines[2]]))
    source = reader([path], filters=ALL)
    assert captions(source, range(4)) == ["row 0", *[SkipReason.CORRUPT_METADATA] * 2, "row 2"]
    filtered = reader([path], filters=Filters(min_size=1))
    assert captions(filtered, range(2)) == ["row 0", "row 2"]
    assert filtered.skipped() == {"corrupt_metadata": 2}


def test_tables_that_cannot_be_read_are_named(write_table: Any, reader: UrlTables, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 nothing")
    for path in (str(broken), str(tmp_path / "none.parquet")):
        with pytest.raises(ValueError, match=rf"data\.shards: {path} cannot be read: "):
            reader([path], filters=ALL)
    with pytest.raises(
        ValueError, match=r"data\.shards: x\.csv is not a table; use files that end in \.parquet or \.jsonl"
    ):
        reader(["x.csv"], filters=ALL)


def test_nothing_left_says_why(server: MisbehavingServer, write_table: Any, reader: UrlTables) -> None:
    path = write_table(good(server, 3))
    with pytest.raises(ValueError, match=r"no row of 1 table, .* passes data\.filters: 3 filtered_size"):
        reader([path], filters=Filters(min_size=512))
    with pytest.raises(ValueError, match="they are empty"):
        reader([write_table([], "empty.jsonl")], filters=ALL)


def test_a_table_that_vanishes_later_costs_its_samples_alone(
    server: MisbehavingServer, write_table: Any, reader: UrlTables
) -> None:
    paths = [write_table(good(server, 3)), write_table(good(server, 3), "other.parquet")]
    source = reader(paths, filters=ALL)
    assert captions(source, [0]) == ["row 0"]
    for path in paths:
        Path(path).unlink()
    # What was unpacked is still there.
    assert captions(source, [1, 4]) == ["row 1", SkipReason.UNREADABLE_SHARD]


def test_remote_tables_and_globs(server: MisbehavingServer, write_table: Any, reader: UrlTables) -> None:
    system = fsspec.filesystem("memory")
    rows = good(server, 6)
    for name, part in (("b", rows[3:]), ("a", rows[:3])):
        for ending in ("parquet", "jsonl"):
            system.pipe(f"/laion/{name}.{ending}", Path(write_table(part, f"x.{ending}")).read_bytes())
    for ending in ("parquet", "jsonl"):
        source = reader([f"memory://laion/*.{ending}"], filters=Filters(min_size=1))
        assert captions(source, range(6)) == [f"row {i}" for i in range(6)]
    with pytest.raises(ValueError, match=r"data\.shards: nothing matches memory://laion/\*\.csv"):
        reader(["memory://laion/*.csv"], filters=ALL)


def read_in_worker(source: UrlSource, numbers: list[int], answers: Any) -> None:
    answers.put([str(caption) for caption in captions(source, numbers)])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_have_their_own_connections(
    server: MisbehavingServer, write_table: Any, make_reader: Any, tmp_path: Path, start: str
) -> None:
    links = DeadLinks(folder=str(tmp_path / "dead_links"))
    source = make_reader(dead_links=links)([write_table(good(server, 8))], filters=Filters(min_size=1))
    assert captions(source, [0]) == ["row 0"]  # this process's thread runs
    if start == "spawn":  # as a spawned worker gets it; a new interpreter would take seconds
        copy = pickle.loads(pickle.dumps(source))
        assert captions(copy, range(8)) == [f"row {i}" for i in range(8)]
        return
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    shares = [[1, 2, 3], [4, 5, 6, 7]]
    processes = [context.Process(target=read_in_worker, args=(source, share, answers)) for share in shares]
    for process in processes:
        process.start()
    found = sorted(answers.get() for _ in processes)
    for process in processes:
        process.join()
    assert found == [[f"row {i}" for i in share] for share in shares]
    assert links.counts().alive == 8


def test_memory_does_not_grow_with_the_tables(
    write_table: Any, reader: UrlTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rfdit.data.tables.selected_rows.OPEN_PIECES", 2)
    source = reader([write_table([{"URL": "x", "TEXT": str(i)} for i in range(30)])], filters=ALL)
    for number in (0, 29, 14, 3, 0):
        assert source.rows[number][1]["TEXT"] == str(number)
        assert len(source.rows._open) <= 2
