"""Runs of other diffusions, DDPM and EDM, and with a learned weighting: kills, ranks, sampling and exports."""

from pathlib import Path

import numpy as np
import pytest

from rfdit.checkpoint.saved_run import read_checkpoint
from tests.support.commands.command_line import FEW_SHAPES, CommandLine, images, metrics
from tests.support.training.spread import FOUR, TWO, assert_close, curve, run
from tests.support.training.states import assert_equal, resumed_state, trained_state

METHODS = {
    "ddpm": ["experiment=ddpm_baseline"],
    "edm": ["experiment=edm_baseline"],
    "learned": ["weighting=learned"],
}
every = pytest.mark.parametrize("method", METHODS)


@pytest.mark.slow
def test_ddpm_trains_a_variance_and_is_sampled_with_it_and_without(cli: CommandLine) -> None:
    cli.train("run_dir=run", *METHODS["ddpm"], FEW_SHAPES)
    rows = metrics(Path("run"))
    for row in rows:
        total = float(row["train/simple"]) + float(row["train/vb"])
        assert float(row["train/loss"]) == pytest.approx(total, rel=1e-5)
    request = ["ckpt=run", "prompts=[a red circle]", "seed=3"]
    made = {}
    for name, sampler in {
        "own": ["sampler=ddpm"], "small": ["sampler=ddpm", "sampler.solver.variance=small"], "ode": ["sampler=heun"],
    }.items():  # fmt: skip
        cli.sample(*request, *sampler, f"out={name}")
        made[name] = images(Path(name))
    assert not np.array_equal(made["own"], made["small"])
    cli.export("ckpt=run", "out=exported")
    cli.sample("ckpt=exported", *request[1:], "sampler=ddpm", "out=again")
    assert np.array_equal(images(Path("again")), made["own"])


@pytest.mark.slow
def test_a_learned_weighting_is_trained_and_left_out_of_the_model(cli: CommandLine) -> None:
    quick = ["trainer.max_steps=6", "schedule.warmup_steps=0", "trainer.val_every_n_steps=6"]
    for name, method in (("plain", []), ("learned", METHODS["learned"])):
        cli.train(f"run_dir={name}", *quick, *method)
    plain, rows = (metrics(Path(name)) for name in ("plain", "learned"))
    assert float(rows[0]["train/loss"]) == float(rows[0]["train/unweighted"]) == float(plain[0]["train/loss"])
    assert float(rows[-1]["train/loss"]) != float(rows[-1]["train/unweighted"])
    # Validation is the loss without weights.
    last = [float(row["val/loss"]) for row in (plain[-1], rows[-1])]
    assert last[1] == pytest.approx(last[0], rel=1e-2)
    saved = read_checkpoint(Path("learned/checkpoints/last.ckpt"))
    assert saved.network["objective.coefficients"].abs().max() > 0
    assert not any("objective" in name for name in (*saved.weights("raw"), *saved.weights("ema")))
    cli.export("ckpt=learned", "out=exported")
    cli.sample("ckpt=exported", "prompts=[a red circle]", "out=images")
    assert list(Path("images").glob("0*.png"))
    message = cli.error("train", "run_dir=learned", "ckpt=last", "trainer.max_steps=9")
    assert message == (
        "ckpt=learned/checkpoints/last.ckpt was trained with objective layers beside the model, and this run has none; "
        "give the auxiliary and weighting that it was trained with"
    )


@pytest.mark.slow
@every
def test_resume_is_bit_equal(cli: CommandLine, method: str) -> None:
    settings = [*METHODS[method], FEW_SHAPES, "schedule.total_steps=4"]
    cli.train("run_dir=whole", "trainer.max_steps=4", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=2", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=4", "ckpt=last", *settings)
    assert_equal(resumed_state(Path("whole")), resumed_state(Path("parts")))
    assert_equal(metrics(Path("whole")), metrics(Path("parts")))


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
@every
def test_two_ranks_train_the_run_of_one(tmp_path: Path, method: str) -> None:
    single = run(tmp_path / "single", FOUR, *METHODS[method])
    for strategy in ("ddp", "fsdp"):
        folder = run(tmp_path / strategy, f"strategy={strategy}", *TWO, *METHODS[method])
        assert curve(folder) == pytest.approx(curve(single), rel=1e-5)
        assert_close(trained_state(folder), trained_state(single))


def test_what_does_not_fit_is_one_sentence(cli: CommandLine) -> None:
    assert cli.error("train", "objective=ddpm") == (
        "objective=ddpm needs the timesteps of a schedule, and time._target_=LogitNormalTime draws other times; use "
        "time=ddpm"
    )
    assert cli.error("train", "objective=ddpm", "time=ddpm").startswith(
        "objective=ddpm trains a variance beside"
    )
    message = cli.error("train", *METHODS["ddpm"], FEW_SHAPES, "model.out_channels=null")
    assert message.startswith(
        "model gives 3 channels for latents of 3, and prediction.learned_variance=true needs 6"
    )
