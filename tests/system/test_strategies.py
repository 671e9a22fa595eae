"""single, ddp and fsdp are the same run: two processes on gloo, through the real command line."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

import rfdit.commands.sample
from rfdit.checkpoint.saved_run import read_raw
from tests.support.commands.command_line import metrics
from tests.support.commands.processes import ROOT, SETTINGS, finish, start
from tests.support.training.spread import FOUR, STEPS, TWO, assert_close, curve, run
from tests.support.training.states import assert_equal, trained_state
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("drawn_shapes")]


def start_run(
    run_dir: Path, *overrides: str, later: Sequence[str] = (), **variables: str
) -> "subprocess.Popen[str]":
    settings = [f"run_dir={run_dir}", *SETTINGS, *STEPS, *later]
    return start(ROOT / "train.py", *overrides, *settings, cwd=run_dir.parent, **variables)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs of twenty steps: `single` with batches of 4, `half` of it, and a sweep of two ranks."""
    folder = tmp_path_factory.mktemp("strategies")
    run(folder / "half", FOUR, "trainer.max_steps=10")
    run(folder / "single", FOUR)
    finish(start_run(folder / "sweep", "-m", "strategy=ddp,fsdp", *TWO))
    return folder


def swept(runs: Path, strategy: str) -> Path:
    """The sweep's run with a strategy; there is one."""
    found = [
        f
        for f in (runs / "sweep").iterdir()
        if f.is_dir() and f"strategy={strategy}\n" in (f / "overrides.txt").read_text()
    ]
    assert len(found) == 1
    return found[0]


def test_the_loss_curves_agree(runs: Path) -> None:
    gathered = run(runs / "gathered", "data.batch_size=2", "trainer.accumulate_grad_batches=2")
    expected = curve(runs / "single")
    assert len(expected) == 20
    assert len({round(loss, 3) for loss in expected}) > 10
    for folder in (swept(runs, "ddp"), swept(runs, "fsdp"), gathered):
        assert curve(folder) == pytest.approx(expected, rel=1e-5)
        assert_close(trained_state(folder), trained_state(runs / "single"))


def test_a_sweep_keeps_its_runs_apart(runs: Path) -> None:
    assert sorted(f.name for f in (runs / "sweep").iterdir() if not f.is_dir()) == ["multirun.yaml"]
    assert len([f for f in (runs / "sweep").iterdir() if f.is_dir()]) == 2
    for strategy, target in (("ddp", "strategy.ddp"), ("fsdp", "FullySharded")):
        folder = swept(runs, strategy)
        assert len((folder / "environment.jsonl").read_text().splitlines()) == 1
        config = read_raw(folder / "checkpoints/last.ckpt", weights=False)["rfdit"]["config"]
        assert config["strategy"]["_target_"].endswith(target)
        assert runs / config["run_dir"] == folder


def test_a_checkpoint_goes_on_under_any_strategy(runs: Path) -> None:
    half = runs / "half/checkpoints/last.ckpt"
    sharded = run(runs / "to_fsdp", "strategy=fsdp", *TWO, f"ckpt={half}", "trainer.max_steps=14")
    assert (sharded / "checkpoints/last.ckpt").is_symlink()
    whole = trained_state(runs / "single")
    assert_close(trained_state(run(runs / "to_single", FOUR, f"ckpt={sharded}")), whole)
    assert_close(
        trained_state(run(runs / "to_ddp", "strategy=ddp", *TWO, f"ckpt={sharded}/checkpoints/last.ckpt")),
        whole,
    )
    # What a rank holds depends on how many there are: here four, in two replicas, of a state that two have
    # written, and two of what those write.
    four = ["strategy.replicas=2", "trainer.devices=4", "data.batch_size=1", "trainer.max_steps=17"]
    by_four = run(runs / "to_four", "strategy=fsdp", *four, f"ckpt={sharded}")
    assert_close(trained_state(run(runs / "to_two", "strategy=fsdp", *TWO, f"ckpt={by_four}")), whole)
    # A folder of parts becomes a file.
    (runs / "to_one/checkpoints").mkdir(parents=True)
    for file in (sharded / "checkpoints").iterdir():
        copied = runs / "to_one/checkpoints" / file.name
        copied.symlink_to(os.readlink(file)) if file.is_symlink() else shutil.copytree(file, copied)
    assert_close(trained_state(run(runs / "to_one", FOUR, "ckpt=last")), whole)
    assert len(list((runs / "to_one/checkpoints").iterdir())) == 1


def test_sharded_a_resumed_run_is_bit_equal_to_a_whole_one(runs: Path) -> None:
    options = [
        "strategy=fsdp", "strategy.meta_init=true", "strategy.reshard_after_forward=false",
        "trainer.background_checkpoints=true", *TWO,
    ]  # fmt: skip
    part = run(runs / "part", *options, "trainer.max_steps=10")
    shutil.move(part, runs / "moved")  # a run folder may be moved
    run(runs / "moved", *options, "strategy.replicas=1", "ckpt=last")
    assert_equal(trained_state(runs / "moved"), trained_state(swept(runs, "fsdp")))


def test_a_network_of_another_prediction_is_sharded_like_any_other(runs: Path) -> None:
    """Its wrapper adds no names, and its gradients are reduced."""
    data = "prediction=data"
    single = run(runs / "data", data, FOUR, "trainer.max_steps=5")
    finish(start_run(runs / "data_fsdp", data, "strategy=fsdp", *TWO, later=["trainer.max_steps=5"]))
    assert curve(runs / "data_fsdp") == pytest.approx(curve(single), rel=1e-5)
    assert_close(trained_state(runs / "data_fsdp"), trained_state(single))
    assert trained_state(single).keys() == trained_state(runs / "single").keys()


def test_images_and_replicas_of_a_sharded_state(runs: Path) -> None:
    replicated = run(runs / "replicas", "strategy=fsdp", "strategy.replicas=2", *TWO, "trainer.max_steps=3")
    assert curve(replicated) == pytest.approx(curve(runs / "single")[:3], rel=1e-5)
    arguments = [
        "sample.py",
        f"ckpt={replicated}",
        "prompts=[a red circle]",
        f"out={runs / 'out'}",
        "sampler.steps=2",
    ]
    with patch.object(sys, "argv", arguments):
        rfdit.commands.sample.main()
    assert (runs / "out/grid.png").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_looks_into_a_run_sees_whole_networks(tmp_path: Path, precision: str) -> None:
    """Validation, grids, guards, muP and compiled blocks, where every rank holds parts."""
    off = ("callbacks.grid=", "trainer.val_every", "trainer.precision=")
    settings = [setting for setting in SETTINGS if not setting.startswith(off)]
    options = [
        "trainer.max_steps=4", "trainer.val_every_n_steps=2", "callbacks.grid.every_n_steps=4",
        "callbacks.grid.count=2", "sampler.steps=2", "spikes=median", f"trainer.precision={precision}",
        "optimizer=adamw_mup", f"compile={str(precision == 'bf16').lower()}",
    ]  # fmt: skip
    single = run(tmp_path / "single", FOUR, *options, settings=settings)
    sharded = run(tmp_path / "sharded", "strategy=fsdp", *TWO, *options, settings=settings)
    rows = [[r for r in metrics(folder) if r["val/loss"]] for folder in (single, sharded)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for name in ("val/loss", "train/grad_norm"):
        values = [[float(row[name]) for row in of_run] for of_run in rows]
        assert values[0] == pytest.approx(values[1], rel=1e-4 if precision == "fp32" else 2e-2)
    grids = [
        np.asarray(Image.open(folder / "samples/step_00000004.png")).astype(int)
        for folder in (single, sharded)
    ]
    assert np.abs(grids[0] - grids[1]).max() <= (1 if precision == "fp32" else 24)


def test_skipped_steps_gathered_gradients_and_several_averages(tmp_path: Path) -> None:
    options = [
        "trainer.max_steps=10", "ema=power", "callbacks.ema.every_n_steps=3", "spikes=median",
        "callbacks.spikes.window=1", "callbacks.spikes.factor=1.02",
    ]  # fmt: skip
    gathered = ["trainer.devices=2", "data.batch_size=1", "trainer.accumulate_grad_batches=2"]
    single = run(tmp_path / "single", FOUR, *options)
    skipped = [row["train/skipped_steps"] for row in metrics(single)]
    assert 1 <= float(skipped[-1]) <= 8
    for strategy in ("ddp", "fsdp"):
        spread = run(tmp_path / strategy, f"strategy={strategy}", *gathered, *options)
        assert [row["train/skipped_steps"] for row in metrics(spread)] == skipped
        assert curve(spread) == pytest.approx(curve(single), rel=1e-5)
        assert_close(trained_state(spread), trained_state(single))


def test_a_rank_that_fails_ends_the_run_with_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import lightning as L\n"
        "class Fail(L.Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_rank == 1 and trainer.global_step == 3:\n"
        "            raise ValueError('rank 1 is ill')\n"
    )
    fails, found = "+callbacks.fail._target_=failing.Fail", f"{ROOT}:{tmp_path}"
    output = finish(start_run(tmp_path / "run", "strategy=ddp", *TWO, fails, PYTHONPATH=found), 1)
    assert "error: rank 1 is ill" in output
    assert "error: rank 1 failed; its error is printed above" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_first_rank_ends_all(tmp_path: Path, stop: signal.Signals) -> None:
    process = start_run(tmp_path / "run", "strategy=fsdp", *TWO, later=["trainer.max_steps=100000"])
    wait_until((tmp_path / "run/checkpoints/last.ckpt").exists, process)
    others = ranks_of(process.pid)
    assert others
    process.send_signal(stop)
    output = finish(process, -stop if stop == signal.SIGKILL else 128 + stop)
    if stop == signal.SIGTERM:
        assert "stopped by SIGTERM at step" in output
        assert "ckpt=last" in output
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in others))


def ranks_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    return [int(child) for child, parent, args in rows if int(parent) == pid and "rfdit train" in args]


def test_ranks_read_the_configuration_of_the_first(tmp_path: Path) -> None:
    """Also where --config-path has another folder than conf/ read."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    file = tmp_path / "conf/train.yaml"
    file.write_text(file.read_text().replace("seed: 0 ", "seed: 1 "))
    finish(start_run(
        tmp_path / "run", "--config-path", str(tmp_path / "conf"), "strategy=ddp", *TWO, later=["trainer.max_steps=3"],
    ))  # fmt: skip
    single = run(tmp_path / "single", FOUR, "seed=1", "trainer.max_steps=3")
    assert curve(tmp_path / "run") == pytest.approx(curve(single), rel=1e-5)


@pytest.mark.parametrize(
    ("launcher", "rates"),
    [("joblib", ["1e-3", "1e-4"]), ("submitit_local", ["1e-3"])],
    ids=["joblib", "submitit"],
)
def test_a_sweep_by_another_launcher(tmp_path: Path, launcher: str, rates: list[str]) -> None:
    swept = f"optimizer.lr={','.join(rates)}"
    finish(start_run(
        tmp_path / "sweep", "-m", f"hydra/launcher={launcher}", "strategy=ddp", swept, *TWO,
        later=["trainer.max_steps=2"],
    ))  # fmt: skip
    runs = list(tmp_path.glob("sweep/*/checkpoints/last.ckpt"))
    found = [read_raw(file)["rfdit"]["config"]["optimizer"]["lr"] for file in runs]
    assert sorted(found) == sorted(map(float, rates))
    for file in runs:
        assert len(curve(file.parent.parent)) == 2


@pytest.mark.parametrize("sweep", [False, True])
def test_a_scheduler_that_places_the_ranks(tmp_path: Path, sweep: bool) -> None:
    """The variables by which SLURM's srun lets two tasks find each other, at every point of a sweep too."""
    options = ["-m", "strategy=ddp,fsdp"] if sweep else ["strategy=ddp"]
    slurm = {
        "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2", "MASTER_PORT": str(20000 + os.getpid() % 20000),
    }  # fmt: skip
    tasks = [
        start_run(
            tmp_path / "run",
            *options,
            *TWO,
            later=["trainer.max_steps=3"],
            **slurm,
            SLURM_PROCID=rank,
            SLURM_LOCALID=rank,
        )
        for rank in ("0", "1")
    ]
    for task in tasks:
        finish(task)
    runs = [file.parent for file in tmp_path.glob("**/metrics.csv")]
    assert [len(curve(folder)) for folder in runs] == [3] * (1 + sweep)


def test_a_sweep_of_ranks_that_torchrun_has_placed(tmp_path: Path) -> None:
    """Every point trains on both tasks, also after a point that one of them has left."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    (tmp_path / "failing.py").write_text(
        "import lightning as L\n"
        "class Fail(L.Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_rank == 1 and trainer.optimizers[0].param_groups[0]['lr'] > 1e-4:\n"
        "            raise ValueError('rank 1 is ill')\n"
    )
    command = [
        *torchrun, str(ROOT / "train.py"), "-m", f"run_dir={tmp_path / 'sweep'}", *SETTINGS, *TWO,
        "strategy=fsdp", "schedule.warmup_steps=0", "trainer.max_steps=2", "optimizer.lr=1e-5,2e-5,1e-3,3e-5",
        "+callbacks.fail._target_=failing.Fail",
    ]  # fmt: skip
    process = start(*command, cwd=tmp_path, PYTHONPATH=f"{ROOT}:{tmp_path}")
    output = finish(process, 1)
    assert "rank 1 is ill" in output
    for rate in ("1e-05", "2e-05", "3e-05"):
        assert len(curve(tmp_path / f"sweep/optimizer.lr={rate}")) == 2
        assert (tmp_path / f"sweep/optimizer.lr={rate}/finished.json").exists()
    assert (tmp_path / "sweep/optimizer.lr=0.001/failed.json").exists()


def test_ranks_that_the_replicas_do_not_divide(tmp_path: Path) -> None:
    output = finish(start_run(tmp_path / "run", "strategy=fsdp", "strategy.replicas=3", *TWO), 1)
    assert "error: strategy.replicas=3 does not divide the 2 ranks" in output


def test_muon_orthogonalises_whole_matrices(tmp_path: Path) -> None:
    options = ["trainer.max_steps=6", "optimizer=muon", "spikes=median", "callbacks.spikes.window=1"]
    options.append("callbacks.spikes.factor=1.02")
    single = run(tmp_path / "single", FOUR, *options)
    sharded = run(tmp_path / "sharded", "strategy=fsdp", *TWO, *options)
    skipped = [row["train/skipped_steps"] for row in metrics(single)]
    assert 1 <= float(skipped[-1]) <= 4
    assert [row["train/skipped_steps"] for row in metrics(sharded)] == skipped
    assert curve(sharded) == pytest.approx(curve(single), rel=1e-4)
