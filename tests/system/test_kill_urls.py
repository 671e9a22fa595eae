"""A run that fetches its images, killed with SIGKILL and resumed: the same samples in the same steps."""

import itertools
import json
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from tests.support.commands.processes import environment, kill_all
from tests.support.servers.misbehaving_server import MisbehavingServer
from tests.support.training.recorded_runs import STEPS, command, flat, recorded, run, wait_for_step, weights
from tests.support.training.states import assert_equal

ROWS = 40  # with 4 at a time for 24 steps, two epochs and some
BAD = {3: "not_found", 4: "html", 11: "truncated", 17: "broken", 18: "never", 30: "opted_out", 31: "bomb"}


def overrides(run_dir: str) -> list[str]:
    return [
        "data.reader.fetcher.allow_networks=[127.0.0.1]",
        "data.reader.fetcher.read_timeout=5",
        "data.reader.fetcher.total_timeout=8",
        "data.reader.fetcher.backoff=0.01",
        f"data.reader.images.folder={run_dir}/images",
        "data.batch_size=4",
        "data.num_workers=2",
    ]


@pytest.mark.slow
def test_killed_and_resumed_it_sees_the_samples_of_the_run_that_was_not(tmp_path: Path) -> None:
    with MisbehavingServer() as server:
        rows = [
            {"URL": server.url(f"/{BAD.get(i, 'ok')}/{i}"), "TEXT": f"row {i}", "WIDTH": 32, "HEIGHT": 32}
            for i in range(ROWS)
        ]
        table = tmp_path / "table.parquet"
        parquet.write_table(pa.Table.from_pylist(rows), table, row_group_size=9)
        settings = {"ranks": 1, "data": "laion_urls"}
        run("whole", table, tmp_path, *overrides("whole"), **settings)
        whole = recorded(tmp_path / "whole/record")
        order = flat(whole)
        assert [position for position, _ in order] == list(range(4 * STEPS))
        for epoch in range(2):
            seen = {int(key) for _, key in order[ROWS * epoch : ROWS * (epoch + 1)]}
            assert seen == set(range(ROWS)) - BAD.keys()

        process = subprocess.Popen(
            command("killed", table, *overrides("killed"), **settings), cwd=tmp_path,
            env=environment(tmp_path / "cache"), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            wait_for_step(tmp_path / "killed/record", 13, process)
        finally:
            kill_all(process)
        saved = torch.load(tmp_path / "killed/checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert saved in (10, 15, 20)
        before = recorded(tmp_path / "killed/record")
        (tmp_path / "killed/record").rename(tmp_path / "killed/record-before")
        contacts = len(server.contacts)
        run("killed", table, tmp_path, "ckpt=last", *overrides("killed"), **settings)
        resumed = recorded(tmp_path / "killed/record")

    assert resumed == {step: whole[step] for step in range(saved, STEPS)}
    assert before == {step: whole[step] for step in before}
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    # What was found out before the kill was known after it.
    dead = [f"/{behaviour}/{i}" for i, behaviour in BAD.items() if behaviour != "bomb"]
    assert not set(dead) & set(itertools.islice(server.contacts, contacts, None))
    report = json.loads((tmp_path / "killed/dead_links/dead_links.json").read_text())
    assert (report["urls"], report["alive"]) == (ROWS, ROWS - len(dead))
