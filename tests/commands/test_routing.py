"""Runs with TREAD: the baseline at rate 0, kills, ranks, validation by all tokens, and what does not go together."""

from pathlib import Path

import pytest
import torch

from tests.support.commands.command_line import TWENTY_STEPS, CommandLine, metrics
from tests.support.training.spread import FOUR, TWO, assert_close, curve, run
from tests.support.training.states import assert_equal, resumed_state, trained_state

TREAD = ["routing=tread", "routing.first=1", "routing.last=1", "trainer.precision=fp32"]


@pytest.mark.slow
def test_at_rate_0_it_is_the_run_without(cli: CommandLine) -> None:
    cli.train("run_dir=plain", "trainer.precision=fp32")
    cli.train("run_dir=with", *TREAD, "routing.rate=0")
    assert_equal(trained_state(Path("plain")), trained_state(Path("with")))


@pytest.mark.slow
def test_validation_is_by_all_tokens(cli: CommandLine) -> None:
    cli.train("run_dir=start", *TWENTY_STEPS, "trainer.precision=fp32")
    still = ["init=weights", "init.ckpt=start", "optimizer.lr=0", "trainer.precision=fp32"]
    validated = [*still, "trainer.val_every_n_steps=3", "data.val_shards.samples=8"]
    cli.train("run_dir=plain", *validated)
    cli.train("run_dir=with", *validated, *TREAD)
    plain, other = (metrics(Path(folder)) for folder in ("plain", "with"))
    for name, same in (("val/loss", True), ("train/loss", False)):
        losses = [[row[name] for row in rows if row[name]] for rows in (plain, other)]
        assert losses[0]
        assert (losses[0] == losses[1]) == same, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [[], ["prediction=data", "model.recompute=full"]], ids=["plain", "recomputed"]
)
def test_resume_is_bit_equal(cli: CommandLine, extra: list[str]) -> None:
    # Fast, since a network sees of its blocks only what they have learned.
    settings = [*TREAD, *extra, *TWENTY_STEPS, "schedule.total_steps=4"]
    cli.train("run_dir=whole", *settings, "trainer.max_steps=4")
    cli.train("run_dir=part", *settings, "trainer.max_steps=2")
    cli.train("run_dir=part", "ckpt=last", *settings, "trainer.max_steps=4")
    assert_equal(resumed_state(Path("whole")), resumed_state(Path("part")))


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
def test_ranks_train_what_one_does(tmp_path: Path) -> None:
    start = run(tmp_path / "start", FOUR, *TWENTY_STEPS)  # blocks that matter
    same = ["trainer.precision=fp32", "init=weights", f"init.ckpt={start}", "trainer.max_steps=5"]
    plain = run(tmp_path / "plain", *same, FOUR)
    single = run(tmp_path / "single", *same, *TREAD, FOUR)
    assert curve(single) != pytest.approx(curve(plain), rel=1e-4)
    for strategy in ("ddp", "fsdp"):
        two = run(tmp_path / strategy, *same, *TREAD, f"strategy={strategy}", *TWO)
        assert curve(two) == pytest.approx(curve(single), rel=1e-5)
        assert_close(trained_state(two), trained_state(single))


@pytest.mark.slow
def test_adapters_are_trained_by_some_of_the_tokens(cli: CommandLine) -> None:
    cli.train("run_dir=start", *TWENTY_STEPS, "trainer.precision=fp32")
    for name, settings in {"plain": ["trainer.precision=fp32"], "with": TREAD}.items():
        cli.train(f"run_dir={name}", "init=weights", "init.ckpt=start", "adapter=lora", *settings)
    plain, other = (trained_state(Path(folder)) for folder in ("plain", "with"))
    assert plain.keys() == other.keys()
    assert not all(torch.equal(plain[name], other[name]) for name in plain)


def test_what_does_not_go_together_is_one_sentence(cli: CommandLine) -> None:
    assert cli.error("train", "run_dir=run", "routing=tread", "model=flux").startswith(
        "routing needs blocks that can do without some of the tokens, and those of Flux cannot; use model=dit"
    )
    assert cli.error("train", "run_dir=run", "routing=tread").startswith(
        "routing.first=3, routing.last=None must be blocks of the model's 2, in this order"
    )
