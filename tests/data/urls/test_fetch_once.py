"""Dead URLs: fetched once, remembered by all, counted once, and replaced before anyone waits for them."""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rfdit.data.filters import Filters
from rfdit.data.skips import SkippedSampleError
from rfdit.data.urls.dead_links import DeadLinks
from rfdit.data.urls.fetch import Fetcher
from rfdit.data.urls.request_limits import ByteBudget
from rfdit.data.urls.samples import FetchedSample
from rfdit.data.urls.source import UrlSource, UrlTables
from rfdit.storage.atomic import write_json
from rfdit.storage.disk_cache import DiskCache
from tests.support.servers.misbehaving_server import MisbehavingServer, encoded_image
from tests.support.waiting import wait_until

Open = Callable[..., UrlSource]


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        yield server


@pytest.fixture
def opened(server: MisbehavingServer, tmp_path: Path) -> Open:
    """Opens a table of these paths of the server."""

    def open_table(
        paths: Sequence[str], *, fetcher: dict[str, Any] | None = None, **settings: Any
    ) -> UrlSource:
        quick = {"allow_networks": ["127.0.0.1"], "per_host": 64, "retries": 0, "read_timeout": 2.0}
        table = tmp_path / "table.parquet"
        if not table.exists():
            rows = [{"URL": server.url(path), "TEXT": path} for path in paths]
            parquet.write_table(pa.Table.from_pylist(rows), table)
        dead_links = DeadLinks(folder=str(tmp_path / "dead_links"))
        reader = UrlTables(
            **{
                "fetcher": Fetcher(**quick | (fetcher or {})),
                "index_folder": str(tmp_path / "index"),
                "dead_links": dead_links,
            }
            | settings
        )
        return reader([str(table)], filters=Filters())

    return open_table


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The positions that wait for room in the budget."""
    positions: set[int] = set()

    class WatchedBudget(ByteBudget):
        async def take(self, position: int, size: int) -> None:
            if not self.has_room(position, size):
                positions.add(position)
            await super().take(position, size)
            positions.discard(position)

    monkeypatch.setattr("rfdit.data.urls.source.ByteBudget", WatchedBudget)
    return positions


def outcome(found: FetchedSample) -> str:
    return str(found.reason) if isinstance(found, SkippedSampleError) else bytes(found["txt"]).decode()


def read(source: UrlSource, numbers: Sequence[int]) -> list[str]:
    return [outcome(found) for found in source.samples(numbers)]


DEAD = ["/not_found/0", "/html/1", "/broken/2", "/truncated/3"]
CAUSES = ["fetch_not_found", "fetch_not_an_image", "fetch_server_error", "fetch_truncated"]


@pytest.mark.parametrize("kept", [True, False])
def test_the_dead_are_asked_once_by_all_processes_together(
    server: MisbehavingServer, opened: Open, kept: bool
) -> None:
    source = opened(DEAD, **({} if kept else {"dead_links": None}))
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        worker = context.Process(target=read, args=(source, range(4)))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    assert read(source, range(4)) == CAUSES
    assert sorted(server.contacts) == sorted(DEAD)
    if kept:  # and by a run that is resumed
        assert read(opened(DEAD), range(4)) == CAUSES
        assert sorted(server.contacts) == sorted(DEAD)


def test_what_may_have_passed_is_asked_again_after_a_while(server: MisbehavingServer, opened: Open) -> None:
    source = opened(DEAD, retry_after=0.0)
    for _ in range(3):
        assert read(source, range(4)) == CAUSES
    assert [server.contacts.count(path) for path in DEAD] == [1, 1, 3, 3]


def test_other_rules_for_what_is_alive_begin_anew(server: MisbehavingServer, opened: Open) -> None:
    paths = ["/opted_out/0", "/not_found/1"]
    assert read(opened(paths), range(2)) == ["fetch_opted_out", "fetch_not_found"]
    source = opened(paths, fetcher={"opt_out": []})
    assert read(source, range(2)) == ["/opted_out/0", "fetch_not_found"]
    assert source.reader.dead_links is not None
    assert source.reader.dead_links.counts().summary() == "1 of 2 URLs alive; dead: 1 fetch_not_found"
    assert len(server.contacts) == 4


def test_the_report_counts_urls_and_not_requests(
    server: MisbehavingServer, opened: Open, tmp_path: Path
) -> None:
    source = opened(["/ok/0", "/flaky/1", *DEAD], retry_after=0.0)
    links = source.reader.dead_links
    assert links is not None
    assert read(source, [1]) == ["fetch_server_error"]
    assert links.counts().report()["dead"] == {"fetch_server_error": 1}
    assert read(source, [1]) == ["/flaky/1"]  # alive after all
    assert links.counts().report()["dead"] == {}
    for _ in range(3):
        read(source, range(6))
    assert len(server.contacts) > 12
    links._report()
    report = json.loads((tmp_path / "dead_links/dead_links.json").read_text())
    dead = dict.fromkeys(CAUSES, 1)
    assert (report["urls"], report["alive"], report["dead"]) == (6, 2, dead)


def test_a_substitute_is_fetched_as_soon_as_a_failure_is_known(
    server: MisbehavingServer, opened: Open
) -> None:
    paths = ["/never/0", "/not_found/1", "/html/2", "/ok/3", "/ok/4"]
    source = opened(paths)
    samples = source.samples_or_substitutes([(0, iter([1, 4])), (1, iter([2, 3, 4])), (3, iter([2]))])
    first = next(samples)  # it hangs until its time is up; the others' substitutes do not wait for that
    assert server.contacts.index("/ok/3") < len(server.contacts) - 1
    assert server.contacts[-1] == "/ok/4"
    assert outcome(first) == "fetch_timeout"
    second, third = samples
    assert outcome(second) == "fetch_not_found"
    assert [found.substitute and outcome(found.substitute) for found in (first, second)] == ["/ok/4", "/ok/3"]
    assert outcome(third) == "/ok/3"
    # Of what was known to be dead, nothing was requested twice: 1 as its own and as a substitute of 0.
    assert sorted(set(server.contacts)) == sorted(paths)
    assert [server.contacts.count(path) for path in paths[:3]] == [1, 1, 1]
    # The next time no sample waits for it.
    server.contacts.clear()
    [again] = source.samples_or_substitutes([(0, iter([1, 4]))])
    assert isinstance(again, SkippedSampleError)
    assert again.substitute is not None
    assert server.contacts == ["/ok/4"]


def test_where_all_substitutes_are_dead_there_is_none(server: MisbehavingServer, opened: Open) -> None:
    source = opened([f"/not_found/{i}" for i in range(20)])
    [found] = source.samples_or_substitutes([(0, iter(range(1, 20)))])
    assert isinstance(found, SkippedSampleError)
    assert found.substitute is None
    assert len(server.contacts) == 9  # not all that there may be


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_what_is_held_ahead_is_bounded(
    server: MisbehavingServer,
    opened: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cached: bool,
) -> None:
    totals: list[int] = []

    class Watched(ByteBudget):
        async def take(self, position: int, size: int) -> None:
            await super().take(position, size)
            totals.append(self.total)

    monkeypatch.setattr("rfdit.data.urls.source.ByteBudget", Watched)
    # While the first hangs, what comes after it is kept for later.
    paths = ["/never/0", *(f"/ok/{i}" for i in range(1, 40))]
    expected = ["fetch_timeout", *paths[1:]]
    sizes = [len(encoded_image(i)) for i in range(1, 40)]
    images = DiskCache(folder=str(tmp_path / "images"), max_bytes=10**7) if cached else None
    limit = 4 * max(sizes)
    source = opened(paths, ahead_bytes=limit, images=images, retry_after=0.0)
    for _ in range(2 if cached else 1):
        totals.clear()
        assert read(source, range(40)) == expected
        assert limit - max(sizes) < max(totals) <= limit + max(sizes)
    # With room enough, all are fetched meanwhile.
    totals.clear()
    source = opened(paths, ahead_bytes=10**9, images=images, retry_after=0.0)
    assert read(source, range(40)) == expected
    assert max(totals) == sum(sizes)


@pytest.mark.slow
def test_waiting_for_room_is_not_the_servers_fault(opened: Open, waiting: set[int]) -> None:
    paths = [f"/large/{i}" for i in range(4)]  # larger than what the system and aiohttp hold back
    seconds = 8.0
    source = opened(paths, ahead_bytes=10**6, fetcher={"read_timeout": seconds, "total_timeout": seconds})
    samples = source.samples([0, 1, 2, 3])
    found = [next(samples)]
    wait_until(lambda: len(waiting) >= 2)
    time.sleep(seconds + 1)  # a slow consumer
    found += samples
    assert [outcome(sample) for sample in found] == paths
    assert all(sample["bmp"] == encoded_image(i, "bmp", side=700) for i, sample in enumerate(found))


def in_time(work: Callable[[], list[str]]) -> list[str]:
    """The result of the work; fails if that takes for ever."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(work()), daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive(), "it is locked up"
    return found


@pytest.mark.parametrize(
    ("first", "substitute"),
    [("/flaky/0", None), ("/redirect/0", None), ("/not_found/0", "/large/39")],
)
def test_what_waits_for_room_leaves_its_turn_to_the_due_one(
    opened: Open, first: str, substitute: str | None
) -> None:
    """The due sample gets a slot for its next attempt, the end of its redirect, and its substitute."""
    paths = [first, *(f"/large/{i}" for i in range(1, 40))]
    source = opened(paths, ahead=32, ahead_bytes=8 * 10**6, fetcher={"per_host": 4, "retries": 2})

    def work() -> list[str]:
        found = list(source.samples_or_substitutes((n, iter([39])) for n in range(40)))
        spare = found[0].substitute if isinstance(found[0], SkippedSampleError) else None
        assert (spare and outcome(spare)) == substitute
        return [outcome(sample) for sample in found]

    assert in_time(work) == ["fetch_not_found" if substitute else first, *paths[1:]]


def test_what_waits_for_room_leaves_its_turn_to_what_is_read_in_between(
    opened: Open, waiting: set[int]
) -> None:
    """A stream requests samples in between for an image that cannot be decoded."""
    paths = [f"/large/{i}" for i in range(40)]
    source = opened(paths, ahead=32, ahead_bytes=8 * 10**6, fetcher={"per_host": 4})
    samples = source.samples(range(40))
    assert outcome(next(samples)) == paths[0]
    wait_until(lambda: len(waiting) >= 4)  # as many as requests to one host
    assert in_time(lambda: read(source, [36, 37, 38, 39])) == paths[36:]
    assert in_time(lambda: [outcome(sample) for sample in samples]) == paths[1:]


def test_writers_of_one_report_do_not_disturb_each_other(tmp_path: Path) -> None:
    """They may have the same number, each in its container."""
    path = tmp_path / "report.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_json(path, {"urls": n}), range(400)))
    assert json.loads(path.read_text())["urls"] in range(400)
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_cannot_be_written_is_told_in_a_line(
    opened: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = opened(["/ok/0"])
    assert read(source, [0]) == ["/ok/0"]
    (tmp_path / "dead_links/dead_links.json").mkdir()
    assert source.reader.dead_links is not None
    source.reader.dead_links._report()
    assert "dead_links.json cannot be written: " in capsys.readouterr().out
