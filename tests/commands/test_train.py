"""A run from its first step to its last, through kills, resumes and signals."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rfdit.batch import Batch
from rfdit.training import checkpoint_io
from rfdit.training.module import FlowModule
from tests.support.commands.command_line import FEW_SHAPES, CommandLine, metrics
from tests.support.commands.processes import ROOT, lock_holder, start_training
from tests.support.training.states import assert_equal, resumed_state
from tests.support.waiting import wait_until

GRID = [
    "callbacks.grid={_target_: rfdit.callbacks.SampleGrid, folder: run/samples, sampler: ${sampler}, "
    "every_n_steps: 2, count: 3}",
    "sampler.steps=2",
]


def test_run_folder(cli: CommandLine) -> None:
    cli.train("run_dir=run", "trainer.val_every_n_steps=2", "trainer.limit_val_batches=1")
    run = Path("run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["input_size"] == 32  # resolved
    assert "trainer.max_steps=3" in (run / "overrides.txt").read_text().splitlines()
    environment = json.loads((run / "environment.jsonl").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment["git"] is None or len(environment["git"]["commit"]) == 40
    assert (run / "checkpoints/last.ckpt").exists()
    assert (run / "checkpoints/best.ckpt").exists()
    assert not list((run / "checkpoints").glob(".*"))


def test_metrics(cli: CommandLine) -> None:
    cli.train("run_dir=run", "trainer.max_steps=6", "trainer.val_every_n_steps=3", "data.batch_size=16")
    rows = metrics(Path("run"))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4, 5]
    assert all(float(row["train/loss"]) > 0 for row in rows)
    assert [bool(row["val/loss"]) for row in rows] == [False, False, True, False, False, True]
    curve = [float(v) for k, v in rows[2].items() if k.startswith("val/loss_t")]
    assert len(curve) == 8
    assert float(rows[2]["val/loss"]) == pytest.approx(sum(curve) / 8, rel=1e-5)
    bins = [float(v) for row in rows for k, v in row.items() if k.startswith("train/loss_t") and v]
    assert 0 < sum(bins) / len(bins) < 3
    rates = [float(row["lr-AdamW"]) for row in rows]
    assert rates == sorted(rates)  # warm-up
    assert rates[-1] == pytest.approx(1e-3 * 6 / 101)  # size=tiny's own rate, after 6 of 100 steps


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_bit_equal_to_no_interruption(cli: CommandLine, workers: int) -> None:
    settings = [f"data.num_workers={workers}", "schedule.total_steps=10", "trainer.precision=fp32"]
    cli.train("run_dir=whole", "trainer.max_steps=10", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=4", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=10", "ckpt=last", *settings)
    assert_equal(resumed_state(Path("whole")), resumed_state(Path("parts")))
    whole, parts = metrics(Path("whole")), metrics(Path("parts"))
    assert [row["train/loss"] for row in whole] == [row["train/loss"] for row in parts]


def test_resume_from_another_run_starts_a_folder_of_its_own(cli: CommandLine) -> None:
    cli.train("run_dir=first")
    cli.train("run_dir=second", "ckpt=first", "trainer.max_steps=5")
    assert torch.load("second/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    assert torch.load("first/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def test_metrics_of_steps_that_are_done_again_are_replaced(cli: CommandLine) -> None:
    cli.train("run_dir=run", "trainer.max_steps=6", "callbacks.checkpoints.every_n_steps=4")
    raw = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert raw["global_step"] == 6
    # As after a kill at step 6: the checkpoint of step 4 is the last, metrics go on to 6.
    cli.train("run_dir=four", "trainer.max_steps=4", "schedule.total_steps=6")
    Path("run/checkpoints/last.ckpt").write_bytes(Path("four/checkpoints/last.ckpt").read_bytes())
    cli.train("run_dir=run", "trainer.max_steps=8", "ckpt=last")
    assert [int(row["step"]) for row in metrics(Path("run"))] == list(range(8))


@pytest.mark.slow
@pytest.mark.parametrize(("log_every", "save_every"), [(1, 4), (2, 3)])
def test_a_kill_at_a_checkpoint_costs_no_row(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, log_every: int, save_every: int
) -> None:
    write = checkpoint_io.write_checkpoint

    def write_and_die(checkpoint: dict[str, Any], path: Path) -> None:
        write(checkpoint, path)
        os.kill(os.getpid(), signal.SIGKILL)

    settings = [
        f"trainer.log_every_n_steps={log_every}", f"callbacks.checkpoints.every_n_steps={save_every}",
        "trainer.max_steps=6",
    ]  # fmt: skip
    cli.train("run_dir=whole", *settings)
    if (child := os.fork()) == 0:
        monkeypatch.setattr(checkpoint_io, "write_checkpoint", write_and_die)
        try:
            cli.train("run_dir=killed", *settings)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = [step for step in range(save_every) if (step + 1) % log_every == 0]
    assert [int(row["step"]) for row in metrics(Path("killed"))] == before
    cli.train("run_dir=killed", "ckpt=last", *settings)
    losses = [[(row["step"], row["train/loss"]) for row in metrics(Path(run))] for run in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_a_folder_has_one_run_at_a_time(cli: CommandLine, tmp_path: Path) -> None:
    with lock_holder(tmp_path / "run/run.lock"):
        assert cli.error("train", "run_dir=run").startswith("run_dir=run is in use by process ")
    assert sorted(path.name for path in Path("run").iterdir()) == ["run.lock"]


def test_seed_decides_everything(cli: CommandLine) -> None:
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        cli.train(f"run_dir={run}", f"seed={seed}", "trainer.precision=fp32")
    assert_equal(resumed_state(Path("a")), resumed_state(Path("b")))
    losses = [[row["train/loss"] for row in metrics(Path(run))] for run in "abc"]
    assert losses[0] == losses[1] != losses[2]


def test_non_finite_loss_stops_before_the_weights(cli: CommandLine) -> None:
    message = cli.error(
        "train", "run_dir=run", "optimizer.lr=1e30", "schedule=constant", "trainer.max_steps=20",
        "trainer.gradient_clip_val=null",
    )  # fmt: skip
    assert message.startswith("the loss became non-finite at step ")
    assert "optimizer.lr" in message
    assert " for t in [" in message
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert "the last good state is in run/checkpoints/last.ckpt" in message
    assert all(torch.isfinite(v).all() for v in saved["state_dict"].values())
    assert f"at step {saved['global_step']} " in message


def test_accumulation_updates_the_average_once_per_step(cli: CommandLine) -> None:
    cli.train("run_dir=run", "trainer.accumulate_grad_batches=3", "trainer.max_steps=2")
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["ema"]["ema"]["updates"] == 2
    assert [int(row["step"]) for row in metrics(Path("run"))] == [0, 1]


def test_a_bad_batch_among_accumulated_ones_stops_the_run(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, batches = FlowModule.training_step, iter(range(100))

    def spoilt(module: FlowModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = step(module, batch, batch_idx)
        return loss * float("nan") if next(batches) == 4 else loss  # the second of the second step's three

    monkeypatch.setattr(FlowModule, "training_step", spoilt)
    message = cli.error("train", "run_dir=run", "trainer.accumulate_grad_batches=3")
    assert message.startswith("the loss became non-finite at step 1")
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in saved["state_dict"].values())


def test_a_resumed_run_follows_its_own_settings(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    cli.train("run_dir=run", "schedule=constant", "schedule.warmup_steps=0")
    cli.train(
        "run_dir=run",
        "ckpt=last",
        "trainer.max_steps=5",
        "schedule=constant",
        "optimizer.lr=5e-4",
        "schedule.warmup_steps=0",
    )
    assert "optimizer.lr=0.0005 (there 0.001)" in capsys.readouterr().out
    rates = [float(row["lr-AdamW"]) for row in metrics(Path("run"))]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 5e-4])
    assert "is already at step 5" in cli.error("train", "run_dir=run", "ckpt=last", "trainer.max_steps=5")


def test_the_printed_command_also_resumes_a_run_that_was_stopped_at_its_last_step(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = FlowModule.training_step

    def stopped(module: FlowModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        if module.trainer.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return training_step(module, batch, batch_idx)

    monkeypatch.setattr(FlowModule, "training_step", stopped)
    with pytest.raises(SystemExit) as end:
        cli.train("run_dir=run")
    assert end.value.code == 130
    printed = capsys.readouterr().out
    assert "stopped by SIGINT at step 3 of 3; resume with: python train.py run_dir=run ckpt=last " in printed
    command = shlex.split(printed.partition("resume with: ")[2])
    assert not (Path("run") / "finished.json").exists()
    cli.train(*command[2:])
    assert "run was stopped after its last step, and is complete" in capsys.readouterr().out
    assert json.loads((Path("run") / "finished.json").read_text())["step"] == 3


def test_losses_fall(cli: CommandLine) -> None:
    cli.train("run_dir=run", "trainer.max_steps=60", "schedule.warmup_steps=5", "data.batch_size=16")
    losses = [float(row["train/loss"]) for row in metrics(Path("run"))]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_sample_grid_is_written_from_fixed_noise(cli: CommandLine) -> None:
    cli.train(
        "run_dir=run",
        *GRID,
        "trainer.max_steps=4",
    )
    assert sorted(p.name for p in Path("run/samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]


def test_dit_on_labels(cli: CommandLine, emoji_shard: Path) -> None:
    cli.train(
        "run_dir=run", "model=dit", "conditioner=labels", "conditioner.num_classes=9", "data=laion",
        "data.resolution=32", f"data.shards={emoji_shard}", "data.decoder.label_key=json.label", *GRID,
    )  # fmt: skip
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert saved["state_dict"]["network.conditioner.table.weight"].shape == (10, 24)
    cli.sample("ckpt=run", "labels=[0,8]", "out=out")
    assert "trained on class labels" in cli.error("sample", "ckpt=run", "prompts=[a]")
    assert "9 is not a class of this model, whose classes are 0 to 8" in cli.error(
        "sample", "ckpt=run", "labels=[9]"
    )


@pytest.mark.parametrize("model", ["mmdit", pytest.param("dit", marks=pytest.mark.slow)])
def test_real_photos_in_buckets_resume_exactly(cli: CommandLine, assets: Path, model: str) -> None:
    buckets = [
        "data=laion", f"data.shards={assets / 'data/cc12m'}", "data.resolution=32", "buckets=aspect",
        "data.buckets.step=8", "schedule=constant", f"model={model}",
        "callbacks.throughput={_target_: rfdit.callbacks.Throughput, every_n_steps: 2}",
    ]  # fmt: skip
    cli.train("run_dir=whole", *buckets, "trainer.max_steps=6")
    cli.train("run_dir=halves", *buckets, "trainer.max_steps=3")
    cli.train("run_dir=halves", "ckpt=last", *buckets, "trainer.max_steps=6")
    assert_equal(resumed_state(Path("halves")), resumed_state(Path("whole")))
    origin = resumed_state(Path("whole"))["StreamDataModule"]["origin"]  # type: ignore[index]
    assert len(origin) > 1
    message = cli.error("train", "run_dir=x", *buckets, "data.buckets.step=2")
    assert message.startswith("data.buckets.step=2 is not a multiple of 4, the side of a token in pixels")


@pytest.mark.slow
def test_compiled_blocks_train(cli: CommandLine) -> None:
    cli.train("run_dir=eager", "trainer.precision=fp32")
    cli.train("run_dir=compiled", "trainer.precision=fp32", "compile=true")
    eager, compiled = (float(metrics(Path(run))[-1]["train/loss"]) for run in ("eager", "compiled"))
    assert eager == pytest.approx(compiled, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_with_a_checkpoint(
    cli: CommandLine, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start_training("run_dir=run", "trainer.max_steps=100000", "data.num_workers=2", cwd=tmp_path)
    wait_until((tmp_path / "run/metrics.csv").exists, process)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do: the loader's workers get it too
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert f"stopped by {number.name}" in output
    assert "resume with: python train.py run_dir=run ckpt=last model.width=24" in output
    step = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    cli.train("run_dir=run", "ckpt=last", f"trainer.max_steps={step + 2}")
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == step + 2
    assert [int(row["step"]) for row in metrics(Path("run"))] == list(range(step + 2))


@pytest.mark.slow
def test_two_processes_train_one_model(cli: CommandLine, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = start_training(
        "run_dir=two", "strategy=ddp", "trainer.devices=2", "data.batch_size=2",
        cwd=tmp_path, module=torchrun,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=180)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    saved = torch.load("two/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    cli.sample("ckpt=two", "prompts=[a small red circle]")


@pytest.mark.slow
def test_sweep(cli: CommandLine, tmp_path: Path) -> None:
    """The sweep of the README, with real sizes."""
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", "size=tiny,s", "patch=p4,p8", "trainer.max_steps=2",
        "run_dir=sweep", "data.batch_size=2", "callbacks.grid=null", "callbacks.throughput=null", FEW_SHAPES,
    ]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, timeout=400)
    runs = {path.parent.parent.name for path in (tmp_path / "sweep").glob("*/checkpoints/last.ckpt")}
    assert runs == {f"patch={p},size={s}" for p in ("p4", "p8") for s in ("tiny", "s")}
