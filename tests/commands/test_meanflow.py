"""Runs of mean velocities: kills, ranks, what they learn, samples in one step, and what does not go together."""

from pathlib import Path

import pytest

from tests.support.commands.command_line import FEW_SHAPES, TWENTY_STEPS, CommandLine, images, metrics
from tests.support.training.spread import FOUR, TWO, assert_close, curve, run
from tests.support.training.states import assert_equal, resumed_state, trained_state

MEANFLOW = ["experiment=meanflow", "trainer.precision=fp32"]
# With everything that takes part: guidance of the target, and the network's own velocity as the tangent.
GUIDED = [*MEANFLOW, "objective=improved_meanflow", "objective.omega=1", "objective.kappa=0.5"]

GRID = "callbacks.grid={_target_: rfdit.callbacks.SampleGrid, folder: run/samples, sampler: ${sampler}, count: 1}"


@pytest.mark.slow
def test_a_run_is_resumed_and_sampled_in_one_step(cli: CommandLine) -> None:
    settings = [*GUIDED, FEW_SHAPES, *TWENTY_STEPS, "schedule.total_steps=20", "model.recompute=full"]
    cli.train("run_dir=whole", *settings)
    cli.train("run_dir=parts", *settings, "trainer.max_steps=9")
    cli.train("run_dir=parts", *settings, "ckpt=last")
    assert_equal(resumed_state(Path("whole")), resumed_state(Path("parts")))
    assert_equal(metrics(Path("whole")), metrics(Path("parts")))
    losses = [float(row["train/unweighted"]) for row in metrics(Path("whole"))]
    assert sum(losses[-5:]) < sum(losses[:5])
    request = ["ckpt=whole", "prompts=[a red circle]", "guidance=none", "sampler=meanflow"]
    cli.sample(*request, "sampler.steps=1", "out=one")
    cli.export("ckpt=whole", "out=exported")
    cli.sample("ckpt=exported", *request[1:], "sampler.steps=1", "out=again")
    assert (images(Path("one")) == images(Path("again"))).all()
    message = cli.error("export", "ckpt=whole", "out=folder", "format=diffusers")
    assert message.startswith("format=diffusers cannot express model.durations=True")
    message = cli.error("sample", "ckpt=whole", "prompts=[a red circle]", "sampler=heun", "out=other")
    assert message.startswith("sampler.solver=Heun asks for velocities at single times")
    message = cli.error("sample", "ckpt=whole", "prompts=[a red circle]", "sampler=meanflow", "out=other")
    assert message.endswith("mean velocities over steps are guided in training; use guidance=none")


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
def test_two_ranks_train_the_run_of_one(tmp_path: Path) -> None:
    single = run(tmp_path / "single", FOUR, *GUIDED)
    for strategy in ("ddp", "fsdp"):
        folder = run(tmp_path / strategy, f"strategy={strategy}", *TWO, *GUIDED)
        assert curve(folder) == pytest.approx(curve(single), rel=1e-5)
        assert_close(trained_state(folder), trained_state(single))


def test_what_does_not_fit_is_one_sentence(cli: CommandLine) -> None:
    message = cli.error("train", *MEANFLOW, GRID, "sampler=euler")
    assert message.startswith("sampler.solver=Euler asks for velocities at single times")
    message = cli.error("train", "objective=meanflow", "trainer.max_steps=1")
    assert message.startswith("objective=meanflow trains mean velocities, and the model knows velocities at")
    message = cli.error("train", *GUIDED, "conditioner.drop=0")
    assert message.startswith(
        "objective guides its target away from the null condition, which conditioner.drop=0"
    )
