"""A stream of URLs under the DataModule: what slow and dead servers cost, and what they do not change."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rfdit.batch import Batch
from rfdit.data.datamodule import StreamDataModule
from rfdit.data.decode import SampleDecoder
from rfdit.data.fetch import Fetcher
from rfdit.data.filters import Filters
from rfdit.data.rot import RotLog
from rfdit.data.url_table import UrlTables
from tests.data.misbehaving_server import MisbehavingServer

ROWS, BATCH = 64, 8
CONCURRENCY = 24  # of each worker
TIME = 4.0  # that one URL may take
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
        rot = RotLog(folder=str(folder / "rot"))
        reader = UrlTables(fetcher=fetcher, rot=rot, index_folder=str(folder / "index"), **settings)
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


def row_of(caption: str) -> int:
    return int(caption.rsplit("/", 1)[1])


def assert_live_rows_in_place(found: Sequence[str], expected: Sequence[str]) -> None:
    """Where a row that lives is due, there it is; elsewhere another that lives."""
    for mine, theirs in zip(found, expected, strict=True):
        row = row_of(theirs)
        assert mine == MIXED[row] if row not in BAD else mine.startswith("/slow/")


def test_a_third_that_misbehaves_costs_the_time_of_one_and_moves_nobody(
    server: MisbehavingServer, module: Module
) -> None:
    expected = captions(iter(module("good", GOOD).train_dataloader()))
    assert sorted(map(row_of, expected)) == list(range(ROWS))
    server.busiest = 0
    mixed = module("mixed", MIXED, workers=2, ahead=ROWS // 2)
    began = time.monotonic()
    batches = iter(mixed.train_dataloader())
    found = captions(batches)
    seconds = time.monotonic() - began
    assert_live_rows_in_place(found, expected)
    hanging = sum(behaviour in HANGING for behaviour in BAD.values())
    assert hanging >= 16
    # One after the other they would take 4 s each; side by side, about as long as one.
    assert seconds < hanging * TIME / 2
    assert hanging / 2 < server.busiest <= 2 * CONCURRENCY
    del batches  # ends the workers


def test_in_later_epochs_the_dead_cost_nothing(server: MisbehavingServer, module: Module) -> None:
    expected = captions(iter(module("good", GOOD).train_dataloader()), 4)
    source = module("mixed", MIXED, ahead=ROWS)
    batches = iter(source.train_dataloader())
    found = captions(batches, 2)  # with what was asked ahead of the second before the first was done
    asked = Counter(path for path in server.contacts if not path.startswith("/slow/"))
    assert asked.keys() >= set(MIXED) - {path for path in MIXED if path.startswith("/slow/")}
    found += captions(batches, 2)
    assert_live_rows_in_place(found, expected)
    assert Counter(path for path in server.contacts if not path.startswith("/slow/")) == asked
    assert source.skipped()["fetch_timeout"] > sum(behaviour in HANGING for behaviour in BAD.values())


def test_who_stands_in_depends_on_who_lives_alone(module: Module) -> None:
    """Not on workers, nor on how far is read ahead, nor on what was known before."""
    gone = [f"/{GONE[row % 5]}/{row}" if row in BAD else f"/ok/{row}" for row in range(ROWS)]
    first = captions(iter(module("gone", gone).train_dataloader()), 2)
    known = captions(iter(module("gone", gone).train_dataloader()), 2)
    workers = captions(iter(module("anew", gone, workers=2, ahead=5).train_dataloader()), 2)
    assert first == known == workers
    assert len(set(first[:ROWS])) == ROWS - len(BAD)
