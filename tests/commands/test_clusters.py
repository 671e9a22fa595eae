"""Runs that a scheduler starts, limits, ends and starts again; and the checkpoints that they leave."""

import shlex
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rfdit.batch import Batch
from rfdit.callbacks import GracefulStop
from rfdit.training import time_limit
from rfdit.training.module import FlowModule
from tests.support.commands.command_line import CommandLine, metrics
from tests.support.evaluation.small_evaluation import tiny_eval, write_reference

GRID = "callbacks.grid={_target_: rfdit.callbacks.SampleGrid, folder: run/samples, sampler: ${sampler}, count: 1}"


def step_of(checkpoint: str) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Let a signal come in the middle of the step after this one."""
    training_step = FlowModule.training_step

    def signalled(module: FlowModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        if module.trainer.global_step == step:
            signal.raise_signal(number)
        return training_step(module, batch, batch_idx)

    monkeypatch.setattr(FlowModule, "training_step", signalled)


def test_auto_starts_goes_on_and_is_done(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    cli.train("run_dir=run", "ckpt=auto")
    cli.train("run_dir=run", "ckpt=auto", "trainer.max_steps=5")
    assert " from step 3 " in capsys.readouterr().out
    assert [int(row["step"]) for row in metrics(Path("run"))] == [0, 1, 2, 3, 4]
    before = Path("run/checkpoints/last.ckpt").stat().st_mtime_ns
    cli.train("run_dir=run", "ckpt=auto", "trainer.max_steps=5", "optimizer.lr=0.5")
    assert capsys.readouterr().out == (
        "nothing to do: run_dir=run is complete, at step 5; its settings are others: here optimizer.lr=0.5 "
        "(there 0.001)\n"
    )
    assert Path("run/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert cli.error("train", "ckpt=auto") == (
        "ckpt=auto looks for a run in run_dir, which is a new folder at every start; give run_dir=..."
    )


def test_a_time_limit_is_of_each_start(
    cli: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on by a second with each step, and a resumed run has all the time again."""
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=iter(range(10_000)).__next__))
    write_reference(Path("reference.npz"))
    settings = [
        "run_dir=run", "trainer.max_steps=7", "trainer.max_time=00:00:03", GRID, *tiny_eval("reference.npz"),
        "sampler.steps=1", "callbacks.progress=null",
    ]  # fmt: skip
    cli.train(*settings)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "stopped by max_time at step 3 of 7; resume with: python train.py run_dir=run ckpt=last "
    )
    assert not Path("run/finished.json").exists()
    assert step_of("run/checkpoints/last.ckpt") == 3
    assert Path("run/samples/step_00000003.png").exists()
    assert '"step": 3' in Path("run/evaluations.jsonl").read_text()
    cli.train(*shlex.split(last.partition("resume with: ")[2])[2:])
    assert "stopped by max_time at step 6 of 7; " in capsys.readouterr().out
    cli.train(*settings, "ckpt=auto")
    assert "done: 7 steps; " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ckpt", "status", "said"),
    [
        ("ckpt=auto", 0, "stopped by SIGUSR1 at step 2 of 3; job 12_5 is in the queue again"),
        ("ckpt=auto", 1, "stopped by SIGUSR1 at step 2 of 3 (no such job); resume with: python train.py "),
        ("ckpt=null", 0, "stopped by SIGUSR1 at step 2 of 3; resume with: python train.py "),
    ],
)
def test_a_job_of_slurm_goes_back_to_the_queue(
    cli: CommandLine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ckpt: str,
    status: int,
    said: str,
) -> None:
    Path("bin").mkdir()
    Path("bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >> asked\necho no such job >&2\nexit {status}\n')
    Path("bin/scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", "bin", prepend=":")
    job = {
        "JOB_ID": 17,
        "ARRAY_JOB_ID": 12,
        "ARRAY_TASK_ID": 5,
        "NTASKS": 1,
        "PROCID": 0,
        "LOCALID": 0,
        "NODEID": 0,
    }
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    at_step(monkeypatch, 1, signal.SIGUSR1)
    with pytest.raises(SystemExit) as end:
        cli.train("run_dir=run", ckpt)
    assert end.value.code == 128 + signal.SIGUSR1
    assert said in capsys.readouterr().out
    assert step_of("run/checkpoints/last.ckpt") == 2
    assert not list(Path("run").glob("hpc_*"))  # which Lightning would write, and not read
    assert Path("asked").exists() == (ckpt == "ckpt=auto")
    if ckpt == "ckpt=auto":
        assert Path("asked").read_text() == "requeue 12_5\n"


@pytest.mark.slow
def test_checkpoints_that_are_kept(cli: CommandLine) -> None:
    kept = ["callbacks.checkpoints.every_n_steps=2", "callbacks.checkpoints.keep_last=2"]
    cli.train("run_dir=run", "callbacks.checkpoints.keep_every=3", *kept, "trainer.max_steps=7")
    files = {f"run/checkpoints/step_{step:08d}.ckpt": step for step in (3, 6, 7)}
    assert {str(file) for file in Path("run/checkpoints").glob("step_*")} == files.keys()
    assert all(step_of(file) == step for file, step in files.items())
    assert Path("run/checkpoints/last.ckpt").samefile("run/checkpoints/step_00000007.ckpt")
    cli.train("run_dir=run", "ckpt=last", "callbacks.checkpoints.keep_every=3", *kept, "trainer.max_steps=8")
    assert sorted(int(file.stem[5:]) for file in Path("run/checkpoints").glob("step_*")) == [3, 6, 7, 8]
    cli.sample("ckpt=run", "step=3", "prompts=[a]", "out=out")
    assert cli.error("sample", "ckpt=run", "step=5", "prompts=[a]").startswith(
        "step=5 is not kept in run/checkpoints; kept are 3, 6, 7, 8. callbacks.checkpoints.keep_every"
    )
    message = cli.error("sample", "ckpt=run/checkpoints/last.ckpt", "step=3", "prompts=[a]")
    assert message.startswith("step=3 chooses among the checkpoints of a run; give its folder")


@pytest.mark.slow
def test_the_best_by_another_metric(cli: CommandLine) -> None:
    """The learning rate rises in the warm-up, so its highest value is that of the last validation."""
    cli.train(
        "run_dir=run", "trainer.max_steps=4", "trainer.val_every_n_steps=2", "trainer.limit_val_batches=1",
        "callbacks.checkpoints.monitor=lr-AdamW", "callbacks.checkpoints.mode=max",
    )  # fmt: skip
    assert step_of("run/checkpoints/best.ckpt") == 4
    write_reference(Path("reference.npz"))
    cli.train(
        "run_dir=fid", *tiny_eval("reference.npz"), "callbacks.checkpoints.monitor=eval/fid", "sampler.steps=1",
        "trainer.max_steps=4", "callbacks.evaluate.every_n_steps=2",
    )  # fmt: skip
    fid = {int(row["step"]) + 1: float(row["eval/fid"]) for row in metrics(Path("fid")) if row["eval/fid"]}
    assert step_of("fid/checkpoints/best.ckpt") == min(fid, key=lambda step: fid[step])


def test_metrics_that_are_not_there(cli: CommandLine) -> None:
    validated = ["trainer.val_every_n_steps=2", "trainer.limit_val_batches=1"]
    with pytest.warns(UserWarning, match=r"monitor=val/los is not logged, so .*; logged are .*val/loss"):
        cli.train("run_dir=run", *validated, "callbacks.checkpoints.monitor=val/los")
    assert cli.error("train", "run_dir=x", "callbacks.checkpoints.monitor=eval/fid").startswith(
        "callbacks.checkpoints.monitor=eval/fid is a metric of generated images, which this run does not measure; "
    )
    assert "must be min or max" in cli.error("train", "run_dir=x", "callbacks.checkpoints.mode=low")


@pytest.mark.parametrize(
    "wrong", ["model.num_heads=5", "data.val_shards=nowhere/*.tar", "callbacks.checkpoints.monitor=eval/fid"]
)
def test_a_failed_start_leaves_no_folder(cli: CommandLine, wrong: str) -> None:
    for place in ([], ["run_dir=a/run"]):
        assert cli.error("train", wrong, *place)
    assert not Path("outputs").exists()
    assert not Path("a/run").exists()


def test_a_failed_start_leaves_what_it_did_not_write(cli: CommandLine) -> None:
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    cli.error("train", "run_dir=run", "model.num_heads=5")
    assert Path("run/notes.txt").exists()


def test_the_first_signal_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    stop, trainer, module = GracefulStop(), SimpleNamespace(is_global_zero=True), SimpleNamespace()
    stop.on_train_start(trainer, module)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGINT)
    stop.on_train_end(trainer, module)  # type: ignore[arg-type]
    assert capfd.readouterr().err == (
        "\nSIGINT: the run ends after this step, with a checkpoint; Ctrl-C again ends it at once, without one\n"
    )
