"""Several processes that fetch into one cache at the same time."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from rfdit.data.filters import Filters
from rfdit.data.skips import SkippedSampleError
from rfdit.data.urls.fetch import Fetcher
from rfdit.data.urls.source import UrlSource, UrlTables
from rfdit.storage.disk_cache import DiskCache
from tests.support.servers.misbehaving_server import MisbehavingServer, encoded_image

ROWS, TURNS = 40, 6


def read(source: UrlSource, seed: int, said: Any) -> None:
    """Prints the number of correct images after each pass over all rows."""
    draw = np.random.default_rng(seed)
    for _ in range(TURNS):
        order = draw.permutation(ROWS).tolist()
        found = list(source.samples(order))
        right = [
            not isinstance(sample, SkippedSampleError) and sample["jpg"] == encoded_image(row)
            for row, sample in zip(order, found, strict=True)
        ]
        said.put((seed, sum(right)))


def test_each_gets_the_right_bytes_also_if_one_is_killed(tmp_path: Path) -> None:
    with MisbehavingServer() as server:
        rows = [{"URL": server.url(f"/ok/{i}"), "TEXT": "x"} for i in range(ROWS)]
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
        # Half of them have room: what one puts there another evicts.
        images = DiskCache(folder=str(tmp_path / "images"), max_bytes=ROWS // 2 * 2 * 4096)
        reader = UrlTables(
            fetcher=Fetcher(allow_networks=["127.0.0.1"], per_host=16),
            images=images,
            index_folder=str(tmp_path / "index"),
        )
        source = reader([str(tmp_path / "table.parquet")], filters=Filters())
        context = multiprocessing.get_context("fork")
        said = {seed: context.SimpleQueue() for seed in range(3)}
        processes = [context.Process(target=read, args=(source, seed, said[seed])) for seed in said]
        for process in processes:
            process.start()
        assert said[2].get() == (2, ROWS)  # it is in the midst of it
        pid = processes[2].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for seed in (0, 1):
            assert [said[seed].get() for _ in range(TURNS)] == [(seed, ROWS)] * TURNS
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, -signal.SIGKILL]
        assert len(server.contacts) < 3 * TURNS * ROWS  # some were found in the cache
        assert images.total_bytes() <= images.max_bytes
