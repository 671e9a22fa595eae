"""single, ddp and fsdp are the same run: two processes on gloo, through the real command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rfdit.training.checkpoint import read_raw
from tests.command_line import metrics
from tests.test_fault_drill import SETTINGS, assert_same, state
from tests.test_kill import ROOT, environment

pytestmark = pytest.mark.slow
TWO = ["trainer.devices=2", "data.batch_size=2"]
HALF = "callbacks.checkpoints.every_n_steps=10"


def start(run: Path, *overrides: str, script: str = "train.py", **variables: str) -> "subprocess.Popen[str]":
    given = (
        [f"run_dir={run}", *SETTINGS, "trainer.max_steps=20", HALF, *overrides]
        if script == "train.py"
        else overrides
    )
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *given], cwd=run.parent, text=True, start_new_session=True,
        env=environment(run.parent / "cache") | {"PYTHONPATH": f"{ROOT}"} | variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """What a run printed; the process group is ended with it."""
    try:
        output = process.communicate(timeout=300)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, output[-3000:]
    return output


def run(run_dir: Path, *overrides: str, **variables: str) -> Path:
    finish(start(run_dir, *overrides, **variables))
    return run_dir


def curve(run_dir: Path) -> list[float]:
    return [float(row["train/loss"]) for row in metrics(run_dir)]


def assert_close(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal but for the order in which float32 numbers are added."""
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=2e-6, msg=name)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps on one device with twice the batch; the state at step 10 is in half.ckpt."""
    folder = tmp_path_factory.mktemp("strategies")
    run(folder / "half", "data.batch_size=4", "trainer.max_steps=10")
    return run(folder / "single", "data.batch_size=4")


def test_the_loss_curves_agree_and_a_sweep_over_strategies_keeps_its_runs_apart(single: Path) -> None:
    sweep = single.parent / "sweep"
    finish(start(sweep, "-m", "strategy=ddp,fsdp", *TWO))
    folders = {
        json.loads((f / "environment.jsonl").read_text())["command"]: f for f in sweep.iterdir() if f.is_dir()
    }
    folders = {
        str(
            read_raw(f / "checkpoints/last.ckpt", weights=False)["rfdit"]["config"]["strategy"]["_target_"]
        ): f
        for f in sweep.iterdir()
        if f.is_dir()
    }
    assert sorted(name.rpartition(".")[2] for name in folders) == ["ddp", "fsdp"]
    gathered = run(single.parent / "gathered", "data.batch_size=2", "trainer.accumulate_grad_batches=2")
    expected = curve(single)
    assert len(expected) == 20
    assert len({round(loss, 3) for loss in expected}) > 10
    for folder in (*folders.values(), gathered):
        assert curve(folder) == pytest.approx(expected, rel=1e-5)
        assert_close(state(folder), state(single))
        assert len((folder / "environment.jsonl").read_text().splitlines()) == 1


def test_a_checkpoint_goes_on_under_any_strategy(single: Path) -> None:
    folder = single.parent
    half = folder / "half/checkpoints/last.ckpt"
    sharded = run(folder / "to_fsdp", "strategy=fsdp", *TWO, f"ckpt={half}", "trainer.max_steps=14")
    assert_close(state(run(folder / "to_single", "data.batch_size=4", f"ckpt={sharded}")), state(single))
    # Another number of ranks: three parts of what two have written, with the batch of four as two and ... one rank.
    on_one = run(
        folder / "to_one", "strategy=fsdp", "data.batch_size=4", f"ckpt={sharded}", "strategy.meta_init=true"
    )
    assert_close(state(on_one), state(single))
    on_ddp = run(folder / "to_ddp", "strategy=ddp", *TWO, f"ckpt={sharded}/checkpoints/last.ckpt")
    assert_close(state(on_ddp), state(single))


def test_sharded_a_resumed_run_is_bit_equal_to_a_whole_one(single: Path) -> None:
    folder = single.parent
    options = ["strategy=fsdp", "strategy.meta_init=true", "trainer.background_checkpoints=true", *TWO]
    whole = run(folder / "whole", *options)
    part = run(folder / "part", *options, "trainer.max_steps=10")
    shutil.move(part, folder / "moved")  # a run folder may be moved
    run(folder / "moved", *options, "ckpt=last")
    assert_same(state(folder / "moved"), state(whole))


def test_pictures_of_a_sharded_checkpoint(single: Path) -> None:
    folder = single.parent
    sharded = run(folder / "pictured", "strategy=fsdp", *TWO, "trainer.max_steps=2")
    finish(
        start(
            folder / "x",
            f"ckpt={sharded}",
            "prompts=[a red circle]",
            f"out={folder / 'out'}",
            "sampler.steps=2",
            script="sample.py",
        )
    )
    assert (folder / "out/grid.png").exists()


def test_a_rank_that_fails_ends_the_run_with_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import lightning as L\n"
        "class Fail(L.Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_rank == 1 and trainer.global_step == 3:\n"
        "            raise ValueError('rank 1 is ill')\n"
    )
    output = finish(
        start(
            tmp_path / "run",
            "strategy=ddp",
            *TWO,
            "+callbacks.fail._target_=failing.Fail",
            PYTHONPATH=f"{ROOT}:{tmp_path}",
        ),
        1,
    )
    assert "error: rank 1 is ill" in output
    assert "error: rank 1 failed; what it said is above" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_first_rank_ends_all(tmp_path: Path, stop: signal.Signals) -> None:
    process = start(tmp_path / "run", "strategy=fsdp", *TWO, "trainer.max_steps=100000")
    deadline = time.monotonic() + 200
    while not (tmp_path / "run/checkpoints/last.ckpt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    others = ranks_of(process.pid)
    assert others
    process.send_signal(stop)
    output = finish(process, -stop if stop == signal.SIGKILL else 128 + stop)
    if stop == signal.SIGTERM:
        assert "stopped by SIGTERM at step" in output
        assert "ckpt=last" in output
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in others):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ranks_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    return [int(child) for child, parent, args in rows if int(parent) == pid and "rfdit.train" in args]


def test_a_scheduler_that_places_the_ranks(tmp_path: Path) -> None:
    """What SLURM's srun tells two tasks, by which they find each other."""
    slurm = {
        "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2", "MASTER_PORT": str(20000 + os.getpid() % 20000),
    }  # fmt: skip
    ranks = [
        start(
            tmp_path / "run",
            "strategy=ddp",
            *TWO,
            "trainer.max_steps=2",
            **slurm,
            SLURM_PROCID=rank,
            SLURM_LOCALID=rank,
        )
        for rank in ("0", "1")
    ]
    for rank in ranks:
        finish(rank)
    assert len(curve(tmp_path / "run")) == 2


def test_ranks_that_the_replicas_do_not_divide(tmp_path: Path) -> None:
    output = finish(start(tmp_path / "run", "strategy=fsdp", "strategy.replicas=3", *TWO), 1)
    assert "error: strategy.replicas=3 does not divide the 2 ranks" in output
