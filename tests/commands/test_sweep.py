"""Sweeps are interrupted, started again with the same command, and end with every point accounted for."""

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from rfdit.checkpoint.saved_run import read_raw
from rfdit.config.sweep import folder_name
from rfdit.run.row_sums import sums_file
from tests.support.commands.command_line import CommandLine, fast, metrics
from tests.support.commands.forks import train_on_ranks
from tests.support.commands.processes import start_training
from tests.support.training.states import assert_equal, trained_state
from tests.support.waiting import wait_until

OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]


def sweep(cli: CommandLine, *overrides: str, code: int = 0) -> None:
    """Runs a sweep in the folder `sweep`."""
    arguments = ("run_dir=sweep", "model.depth=1", *overrides, "-m")
    if code == 0:
        cli.train(*arguments)
        return
    with pytest.raises(SystemExit) as stopped:
        cli.train(*arguments)
    assert stopped.value.code == code


@pytest.mark.slow
def test_points_are_named_by_what_is_swept_and_skipped_when_done(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("patch=p4,p8", "data.batch_size=2")
    sweep(cli, *command)
    names = ["patch=p4", "patch=p8"]
    assert sorted(f.name for f in Path("sweep").iterdir() if f.is_dir()) == names
    printed = capsys.readouterr().out
    assert "resume with: python train.py -m run_dir=sweep model.width=24" in printed.splitlines()[0]
    assert "sweep in sweep: 2 finished, 0 failed, 0 unfinished" in printed
    before = {name: Path("sweep", name, "checkpoints/last.ckpt").stat().st_mtime_ns for name in names}
    sweep(cli, *command)
    printed = capsys.readouterr().out
    for name in names:
        assert f"skipped: sweep/{name} is finished, at step 3\n" in printed
        assert Path("sweep", name, "checkpoints/last.ckpt").stat().st_mtime_ns == before[name]


@pytest.mark.slow
def test_a_point_that_fails_is_recorded_and_the_rest_trained(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        sweep(cli, "model.num_heads=5,2", code=1)
        assert "sweep in sweep: 1 finished, 1 failed, 0 unfinished" in capsys.readouterr().out
    mark = json.loads(Path("sweep/model.num_heads=5/failed.json").read_text())
    assert "num_heads=5" in mark["error"]
    assert mark["type"] == "ValueError"
    assert "Traceback" in mark["traceback"]
    assert json.loads(Path("sweep/model.num_heads=2/finished.json").read_text())["step"] == 3


@pytest.mark.slow
def test_a_finished_point_with_other_settings_is_not_passed_over(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(cli, "seed=0,1")
    sweep(cli, "seed=0,1", "optimizer.lr=0.5", code=1)
    printed = capsys.readouterr().out
    assert (
        "holds a finished run of 3 steps with other settings: here optimizer.lr=0.5 (there 0.001)" in printed
    )
    sweep(cli, "seed=0,1", "trainer.max_steps=5")  # more steps are trained
    assert "sweep/seed=1 from step 3 " in capsys.readouterr().out
    assert [int(row["step"]) for row in metrics(Path("sweep/seed=1"))] == [0, 1, 2, 3, 4]
    assert not list(Path("sweep").glob("*/failed.json"))


@pytest.mark.slow
def test_a_point_stopped_after_its_last_step_is_finished_by_the_next_start(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(cli, "seed=0,1")
    mark, file = Path("sweep/seed=0/finished.json"), Path("sweep/seed=0/metrics.csv")
    before = json.loads(mark.read_text())
    mark.unlink()  # as a signal in the last evaluation leaves it
    sums_file(file).unlink()  # what another program has written has no checksums
    header, first, *others = file.read_text().splitlines()
    file.write_text("\n".join([f"{header},eval/fid", f"{first},9.0", *(f"{row}," for row in others)]) + "\n")
    capsys.readouterr()
    sweep(cli, "seed=0,1")
    printed = capsys.readouterr().out
    said = next(line for line in printed.splitlines() if "was stopped after its last step" in line)
    assert "sweep/seed=0 was stopped after its last step, and lacks that step's eval/fid" in said
    command = shlex.split(said.partition(": ")[2].removesuffix(" ..."))
    assert OverridesParser.create().parse_overrides(command[2:])[0].value() == "sweep/seed=0"
    assert "sweep in sweep: 2 finished, 0 failed, 0 unfinished" in printed
    after = json.loads(mark.read_text())
    assert after["step"] == 3
    assert "eval/fid" not in after["metrics"]
    assert after["metrics"]["train/loss"] == pytest.approx(before["metrics"]["train/loss"], rel=1e-6)


def test_a_single_run_still_refuses_a_folder_that_holds_one(cli: CommandLine) -> None:
    cli.train("run_dir=run", "model.depth=1")
    assert json.loads(Path("run/finished.json").read_text())["step"] == 3
    assert "run_dir=run holds a run already" in cli.error("train", "run_dir=run", "model.depth=1")


@pytest.mark.slow
def test_an_objective_is_any_logged_metric(cli: CommandLine) -> None:
    sweep(
        cli, *OPTUNA, "hydra.sweeper.direction=minimize", "hydra.sweeper.sampler.seed=0",
        "objective_metric=train/loss", "optimizer.lr=tag(log, interval(1e-4, 1e-2))",
    )  # fmt: skip
    best = yaml.safe_load(Path("sweep/optimization_results.yaml").read_text())
    losses = {
        f.parent.name: json.loads(f.read_text())["metrics"] for f in Path("sweep").glob("*/finished.json")
    }
    assert len(losses) == 2
    assert best["best_value"] == min(found["train/loss"] for found in losses.values())
    assert f"optimizer.lr={best['best_params']['optimizer.lr']}" in losses


@pytest.mark.slow
def test_a_trial_that_fails_leaves_the_study_going(cli: CommandLine) -> None:
    # Not sampler=grid, with which Optuna 2 stops a study that has ended by an error.
    failing = ("objective_metric=train/loss", "optimizer.lr=choice(-1,0.001)", "hydra.sweeper.n_trials=5")
    sweep(cli, *OPTUNA, "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", *failing, code=1)
    assert sorted(f.parent.name for f in Path("sweep").glob("*/f*.json")) == [
        "optimizer.lr=-1",
        "optimizer.lr=0.001",
    ]


def test_names_of_folders() -> None:
    assert folder_name("size=s,patch=p4") == "size=s,patch=p4"
    assert folder_name("ckpt=a/b") == "ckpt=a%2Fb"  # one folder, not two
    long = [folder_name("x=" + "y" * 300 + end) for end in "ab"]
    assert max(map(len, long)) < 200
    assert long[0] != long[1]


def wait_for_row(file: Path, process: "subprocess.Popen[str]") -> None:
    wait_until(lambda: file.exists() and len(file.read_text().splitlines()) > 2, process)


@pytest.mark.slow
def test_interrupted_and_killed_it_goes_on_where_it_was(cli: CommandLine, tmp_path: Path) -> None:
    settings = [
        "model.depth=1", "text_encoder.width=8", "trainer.max_steps=40", "trainer.precision=fp32",
        "callbacks.checkpoints.every_n_steps=1",
    ]  # fmt: skip
    command = ("run_dir=sweep", *settings, "patch=p4,p8", "-m")
    environment = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"], "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        interrupted = start_training(*command, cwd=tmp_path)
        wait_for_row(tmp_path / "sweep/patch=p4/metrics.csv", interrupted)
        os.killpg(interrupted.pid, signal.SIGINT)
        output = interrupted.communicate(timeout=120)[0]
        assert interrupted.returncode == 130, output
        assert "stopped by SIGINT at step" in output
        assert "sweep in sweep: 0 finished, 0 failed, 1 unfinished" in output
        assert "\nresume with: python train.py -m run_dir=sweep model.width=24" in output

        killed = start_training(*command, cwd=tmp_path)
        wait_for_row(tmp_path / "sweep/patch=p8/metrics.csv", killed)
        os.killpg(killed.pid, signal.SIGKILL)
        output = killed.communicate(timeout=120)[0]
        assert "training " in output
        assert "sweep/patch=p4 from step " in output

    cli.train(*command)
    cli.train("run_dir=whole", *settings, "patch=p8", "callbacks.checkpoints.every_n_steps=40")
    assert_equal(trained_state(tmp_path / "sweep/patch=p8"), trained_state(tmp_path / "whole"))
    for patch_size in ("p4", "p8"):
        run = tmp_path / f"sweep/patch={patch_size}"
        assert len((run / "environment.jsonl").read_text().splitlines()) == 2  # one interruption each


@pytest.mark.slow
def test_every_rank_of_a_begun_point_resumes(cli: CommandLine) -> None:
    ranks = ["strategy=ddp", "trainer.devices=2"]
    for steps in (2, 4):
        sweep = fast("run_dir=sweep", "model.depth=1", *ranks, "seed=0,1", f"trainer.max_steps={steps}")
        train_on_ranks(*sweep, "-m", runs=2)
    for seed in (0, 1):
        run = Path(f"sweep/seed={seed}")
        assert read_raw(run / "checkpoints/last.ckpt")["global_step"] == 4
        assert len(metrics(run)) == 4
        assert torch.isfinite(torch.tensor(float(metrics(run)[-1]["train/loss"])))
