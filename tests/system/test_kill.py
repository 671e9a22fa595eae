"""Two ranks of two workers each, killed with SIGKILL and resumed."""

import subprocess
from pathlib import Path

import pytest
import torch

from tests.support.commands.processes import environment, kill_all
from tests.support.data.shards import numbered_sample, write_tar
from tests.support.training.recorded_runs import STEPS, command, flat, recorded, run, wait_for_step, weights
from tests.support.training.states import assert_equal

SIZES = [9, 4, 17, 1, 6]  # 37 samples: with 4 at a time, epochs end within batches


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_run_that_was_not(tmp_path: Path) -> None:
    ends = [sum(SIZES[: i + 1]) for i in range(len(SIZES))]
    for number, (size, end) in enumerate(zip(SIZES, ends, strict=True)):
        write_tar(tmp_path / f"shards/{number}.tar", map(numbered_sample, range(end - size, end)))
    shards = tmp_path / "shards"
    two = {"ranks": 2}
    layout = ["data.batch_size=2", "data.num_workers=2"]
    run("whole", shards, tmp_path, *layout, **two)
    whole = recorded(tmp_path / "whole/record")
    order = flat(whole)
    assert [position for position, _ in order] == list(range(4 * STEPS))
    for epoch in range(2):
        keys = [key for _, key in order[37 * epoch : 37 * (epoch + 1)]]
        assert sorted(map(int, keys)) == list(range(37))

    process = subprocess.Popen(
        command("killed", shards, *layout, **two), cwd=tmp_path, env=environment(tmp_path / "cache"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_step(tmp_path / "killed/record", 13, process)
    finally:
        kill_all(process)
    saved = torch.load(tmp_path / "killed/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] in (10, 15, 20)  # not where it was killed
    for name in ("same", "other"):
        copied = tmp_path / name / "checkpoints"
        copied.mkdir(parents=True)
        (copied / "last.ckpt").write_bytes((tmp_path / "killed/checkpoints/last.ckpt").read_bytes())

    run("same", shards, tmp_path, "ckpt=last", *layout, **two)
    resumed = recorded(tmp_path / "same/record")
    assert resumed == {step: whole[step] for step in range(saved["global_step"], STEPS)}
    assert_equal(weights(tmp_path / "same"), weights(tmp_path / "whole"))

    # One rank with three workers and the same global batch: the same stream.
    run("other", shards, tmp_path, "ckpt=last", "data.batch_size=4", "data.num_workers=3", ranks=1)
    assert recorded(tmp_path / "other/record") == resumed
