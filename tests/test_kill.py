"""Two ranks of two workers each, killed with SIGKILL, and what a resume makes of it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.data.conftest import numbered_sample, write_tar

ROOT = Path(__file__).parents[1]
SIZES = [9, 4, 17, 1, 6]  # 37 samples: with 4 at a time, epochs end within batches
STEPS = 24
SMALL = [
    "model.width=24", "model.num_heads=2", "model.depth=1", "trainer.log_every_n_steps=1", "callbacks.grid=null",
    "trainer.val_every_n_steps=null", "callbacks.checkpoints.every_n_steps=5", "text_encoder.width=8",
    "data.resolution=8", "data.filters.min_size=8", f"trainer.max_steps={STEPS}", "trainer.precision=fp32",
    "trainer.accelerator=cpu",  # two ranks run anywhere
    "+callbacks.recorder._target_=tests.recorder.Recorder",
]  # fmt: skip


def command(run: str, shards: Path, *overrides: str, ranks: int, data: str = "laion") -> list[str]:
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    ddp = ["strategy=ddp", f"trainer.devices={ranks}"] if ranks > 1 else []
    return [
        sys.executable, *torchrun, str(ROOT / "train.py"), f"run_dir={run}", f"data={data}", f"data.shards={shards}",
        f"+callbacks.recorder.folder={run}/record", *SMALL, *ddp, *overrides,
    ]  # fmt: skip


def environment(cache: Path | None = None) -> dict[str, str]:
    """Of a script in a process of its own. cache: a folder for it; None is this process's."""
    own = {} if cache is None else {"XDG_CACHE_HOME": str(cache)}
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | own


def recorded(folder: Path) -> dict[int, list[tuple[int, str]]]:
    """Step -> (position, key) of all ranks; of steps that were done again, the last time."""
    steps: dict[int, dict[str, list[tuple[int, str]]]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            pairs = list(zip(line["positions"], line["keys"], strict=True))
            steps.setdefault(line["step"], {})[file.name] = pairs
    return {step: sorted(itertools.chain(*ranks.values())) for step, ranks in steps.items()}


def flat(steps: dict[int, list[tuple[int, str]]]) -> list[tuple[int, str]]:
    return [pair for step in sorted(steps) for pair in steps[step]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == STEPS
    return saved["state_dict"] | {f"ema.{k}": v for k, v in saved["ema"]["ema"]["network"].items()}


def wait_for_step(record: Path, step: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if max(recorded(record), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate(timeout=10)[0])


def run(run_dir: str, shards: Path, cwd: Path, *overrides: str, ranks: int, data: str = "laion") -> None:
    done = subprocess.run(
        command(run_dir, shards, *overrides, ranks=ranks, data=data), cwd=cwd, env=environment(cwd / "cache"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


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


def kill_all(process: "subprocess.Popen[str]") -> None:
    """The launcher, its ranks and their workers: torchrun gives the ranks sessions of their own."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
    family = {process.pid}
    for _ in range(4):
        family |= {pid for pid, parent in parents if parent in family}
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=30)


def assert_equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    different: Sequence[str] = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
