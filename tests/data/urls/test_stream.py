"""A stream of URLs under the DataModule: slow and dead servers cost little and do not change the order."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rfdit.batch import Batch
from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.stream.datamodule import StreamDataModule
from rfdit.data.urls.dead_links import DeadLinks
from rfdit.data.urls.fetch import Fetcher
from rfdit.data.urls.source import UrlTables
from tests.support.servers.misbehaving_server import MisbehavingServer

ROWS, BATCH = 64, 8
CONCURRENCY = 24  # of each worker
TIME = 6.0  # that one URL may take
HANGING = ["never", "drip"]
GONE = ["not_found", "html", "broken", "truncated", "loop"]
# A third misbehaves, most of these without end.
BAD = {row: (HANGING[row % 2] if row % 7 else GONE[row // 21]) for row in range(0, ROWS, 3)}
MIXED = [f"/{BAD[row]}/{row}" if row in BAD else f"/slow/{row}" for row in range(ROWS)]
GOOD = [f"/ok/{row}" for row in range(ROWS)]
Module = Callable[..., StreamDataModule]


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        yield server


@pytest.fixture
def module(server: MisbehavingServer, tmp_path: Path) -> Module:
    """A DataModule of a table of these paths of the server, in a folder of its own."""

    def make(name: str, paths: Sequence[str], workers: int = 0, **settings: Any) -> StreamDataModule:
        rows = [{"URL": server.url(path), "TEXT": path} for path in paths]
        table, folder = tmp_path / f"{name}.parquet", tmp_path / name
        if not table.exists():
            parquet.write_table(pa.Table.from_pylist(rows), table, row_group_size=20)
        fetcher = Fetcher(
            allow_networks=["127.0.0.1"],
            concurrency=CONCURRENCY,
            per_host=CONCURRENCY,
            read_timeout=TIME,
            total_timeout=TIME,
            backoff=0.01,
        )
        links = DeadLinks(folder=str(folder / "dead_links"))
        reader = UrlTables(fetcher=fetcher, dead_links=links, index_folder=str(folder / "index"), **settings)
        return StreamDataModule(
            shards=str(table),
            reader=reader,
            decoder=SampleDecoder(),
            filters=Filters(),
            resolution=8,
            batch_size=BATCH,
            num_workers=workers,
            seed=0,
        )

    return make


def captions(batches: Iterator[Batch], epochs: int = 1) -> list[str]:
    found = [batch.captions or [] for batch in itertools.islice(batches, epochs * ROWS // BATCH)]
    return list(itertools.chain.from_iterable(found))


def counting(batches: Iterator[Batch], skipped: Counter[str]) -> Iterator[Batch]:
    """The batches; adds what was left out of them to `skipped`."""
    for batch in batches:
        skipped.update(batch.skipped)
        yield batch


def row_of(caption: str) -> int:
    return int(caption.rsplit("/", 1)[1])


def assert_live_rows_in_place(found: Sequence[str], expected: Sequence[str]) -> None:
    """A row with a live URL is in its place; every other place has another such row."""
    for mine, theirs in zip(found, expected, strict=True):
        row = row_of(theirs)
        assert mine == MIXED[row] if row not in BAD else mine.startswith("/slow/")


@pytest.mark.slow
def test_a_third_that_misbehaves_costs_the_time_of_one_and_moves_no_other(
    server: MisbehavingServer, module: Module
) -> None:
    expected = captions(iter(module("good", GOOD).train_dataloader()))
    assert sorted(map(row_of, expected)) == list(range(ROWS))
    server.busiest = 0
    mixed = module("mixed", MIXED, workers=2, ahead=ROWS // 2)
    server.contacts.clear()
    batches = iter(mixed.train_dataloader())
    found = captions(batches)
    assert_live_rows_in_place(found, expected)
    hanging = sum(behaviour in HANGING for behaviour in BAD.values())
    assert hanging >= 16
    # They hang side by side, each once for a worker at most, and so cost about as long as one.
    assert hanging / 2 < server.busiest <= 2 * CONCURRENCY
    contacts = Counter(path for path in server.contacts if path.split("/")[1] in HANGING)
    assert max(contacts.values()) <= 2
    del batches  # ends the workers


@pytest.mark.slow
def test_in_later_epochs_the_dead_cost_nothing(server: MisbehavingServer, module: Module) -> None:
    expected = captions(iter(module("good", GOOD).train_dataloader()), 4)
    source = module("mixed", MIXED, ahead=ROWS)
    skipped: Counter[str] = Counter()
    batches = counting(iter(source.train_dataloader()), skipped)
    found = captions(batches, 2)  # with what was requested ahead of the second before the first was done
    requested = Counter(path for path in server.contacts if not path.startswith("/slow/"))
    assert requested.keys() >= set(MIXED) - {path for path in MIXED if path.startswith("/slow/")}
    found += captions(batches, 2)
    assert_live_rows_in_place(found, expected)
    assert Counter(path for path in server.contacts if not path.startswith("/slow/")) == requested
    assert skipped["fetch_timeout"] > sum(behaviour in HANGING for behaviour in BAD.values())


@pytest.mark.slow
def test_substitutes_depend_only_on_which_urls_are_alive(module: Module) -> None:
    """The samples depend neither on workers, nor on reading ahead, nor on links known before."""
    gone = [f"/{GONE[row % 5]}/{row}" if row in BAD else f"/ok/{row}" for row in range(ROWS)]
    first = captions(iter(module("gone", gone).train_dataloader()), 2)
    known = captions(iter(module("gone", gone).train_dataloader()), 2)
    workers = captions(iter(module("anew", gone, workers=2, ahead=5).train_dataloader()), 2)
    assert first == known == workers
    assert len(set(first[:ROWS])) == ROWS - len(BAD)
