"""Runs of mean velocities: ranks, kills, what they learn, samples in one step, and what does not go together."""

from pathlib import Path

import pytest

from tests.support.commands.command_line import TWENTY_STEPS, CommandLine, images, metrics
from tests.support.training.spread import FOUR, TWO, assert_close, curve, run
from tests.support.training.states import trained_state

MEANFLOW = ["experiment=meanflow", "trainer.precision=fp32"]
# With everything that takes part: guidance of the target, and the network's own velocity as the tangent.
GUIDED = [*MEANFLOW, "objective=improved_meanflow", "objective.omega=1", "objective.kappa=0.5"]
RUN = [*GUIDED, *TWENTY_STEPS, "schedule.total_steps=20", "model.recompute=full"]
GRID = "callbacks.grid={_target_: rfdit.callbacks.SampleGrid, folder: run/samples, sampler: ${sampler}, count: 1}"


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
def test_two_ranks_and_a_resumed_run_train_what_one_does(tmp_path: Path, cli: CommandLine) -> None:
    """Half under FSDP, half under DDP; then samples of it, in one step and by nothing else."""
    single = run(tmp_path / "single", FOUR, *RUN)
    losses = [float(row["train/unweighted"]) for row in metrics(single)]
    assert sum(losses[-5:]) < sum(losses[:5])
    folder = tmp_path / "two"
    run(folder, "strategy=fsdp", *TWO, *RUN, "trainer.max_steps=10")
    run(folder, "strategy=ddp", *TWO, *RUN, "ckpt=last")
    assert curve(folder) == pytest.approx(curve(single), rel=1e-4)
    assert_close(trained_state(folder), trained_state(single))

    request = [f"ckpt={single}", "prompts=[a red circle]", "sampler=meanflow", "sampler.steps=1"]
    cli.sample(*request, "guidance=none", "out=one")
    assert images(Path("one")).shape[0] == 1
    message = cli.error("sample", *request, "out=other")
    assert message.endswith("mean velocities over steps are guided in training; use guidance=none")
    message = cli.error("sample", f"ckpt={single}", "prompts=[a red circle]", "sampler=heun", "out=other")
    assert message.startswith("sampler.solver=Heun asks for velocities at single times")
    message = cli.error("export", f"ckpt={single}", "out=folder", "format=diffusers")
    assert message.startswith("format=diffusers cannot express model.durations=True")


@pytest.mark.slow
def test_what_does_not_fit_is_one_sentence(cli: CommandLine) -> None:
    message = cli.error("train", *MEANFLOW, GRID, "sampler=euler")
    assert message.startswith("sampler.solver=Euler asks for velocities at single times")
    message = cli.error("train", "objective=meanflow", "trainer.max_steps=1")
    assert message.startswith("objective=meanflow trains mean velocities, and the model knows velocities at")
    message = cli.error("train", *GUIDED, "conditioner.drop=0")
    assert message.startswith(
        "objective guides its target away from the null condition, which conditioner.drop=0"
    )
