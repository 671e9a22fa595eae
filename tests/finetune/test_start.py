"""init=weights through the command line: what is taken, what is said, and how the run goes on."""

import shutil
from pathlib import Path

import pytest
import torch

from rfdit.checkpoint.saved_run import read_checkpoint
from tests.support.commands.command_line import TWENTY_STEPS, CommandLine, metrics
from tests.support.training.runs import Trained
from tests.support.training.states import assert_equal, resumed_state

FROM = ["init=weights", "init.ckpt=run", "run_dir=new", "optimizer.lr=0"]


def weights(run: str, name: str = "raw") -> dict[str, torch.Tensor]:
    return read_checkpoint(Path(run, "checkpoints/last.ckpt")).weights(name)


@pytest.mark.parametrize("name", ["ema", "raw"])
def test_a_new_run_starts_from_them(
    cli: CommandLine, trained: Trained, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    trained(*TWENTY_STEPS)
    cli.train(*FROM, f"init.weights={name}", "trainer.max_steps=1")
    for kind in ("raw", "ema"):  # which a learning rate of zero leaves
        assert_equal(weights("new", kind), weights("run", name))
    said = capsys.readouterr().out
    assert f"init: {name} weights of run/checkpoints/last.ckpt at step 20, 100.0% of the" in said
    assert "  taken " in said
    assert "  unused" not in said
    assert [int(row["step"]) for row in metrics(Path("new"))] == [0]


def test_an_exported_folder(cli: CommandLine, trained: Trained) -> None:
    trained(*TWENTY_STEPS)
    cli.export("ckpt=run", "out=exported")
    cli.train(*FROM[:1], "init.ckpt=exported", *FROM[2:], "trainer.max_steps=1")
    assert_equal(weights("new"), weights("run", "ema"))


@pytest.mark.slow
def test_resumed_it_reads_its_own_checkpoint_and_trains_what_was_asked(
    cli: CommandLine, trained: Trained
) -> None:
    trained(*TWENTY_STEPS)
    start = [
        *FROM[:2],
        "freeze=[backbone.*,!*.qkv.*]",
        "schedule=constant",
        "callbacks.checkpoints.every_n_steps=2",
    ]
    cli.train(*start, "run_dir=whole", "trainer.max_steps=4")
    cli.train(*start, "run_dir=part", "trainer.max_steps=2")
    shutil.rmtree("run")
    cli.train(*start, "run_dir=part", "trainer.max_steps=4", "ckpt=last")
    assert_equal(resumed_state(Path("part")), resumed_state(Path("whole")))
    message = cli.error("train", *start[:2], "run_dir=part", "trainer.max_steps=6", "ckpt=last")
    assert (
        "belongs to another network or optimizer: here freeze=[] (there ['backbone.*', '!*.qkv.*'])"
        in message
    )


@pytest.mark.slow
def test_what_is_frozen_stays_to_the_last_bit(cli: CommandLine, trained: Trained) -> None:
    trained(*TWENTY_STEPS)
    cli.train(*FROM[:3], "freeze=[*,!backbone.blocks.1.*]", "trainer.max_steps=3")
    for kind in ("raw", "ema"):
        before, after = weights("run", "ema"), weights("new", kind)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert all(name.startswith("backbone.blocks.1.") for name in changed)
    (state,) = torch.load("new/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    assert len(state["state"]) == len([n for n in weights("new") if n.startswith("backbone.blocks.1.")])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=weights"], "init.ckpt is not set; give init.ckpt=..."),
        (["init=weights", "init.ckpt=nowhere"], "nowhere does not exist, and a hub name has the form owner/name"),
        ([*FROM[:2], "init.weights=slow"], "init.weights=slow is not in ckpt=run/checkpoints/last.ckpt; it has"),
        ([*FROM[:2], "model.num_heads=4"], "init.ckpt=run was trained with model.num_heads=2, and with"),
        ([*FROM[:2], "model.norm=rms"], "init.ckpt=run was trained with model.norm=layer, and with model.norm=rms its"),
        ([*FROM[:2], "model.positions=sincos+rope"], "init.ckpt=run was trained with model.positions=sincos, and with"),
        ([*FROM[:2], "model.width=32", "text_encoder.width=32"], "network's parameters, fewer than init.min_share"),
        ([*FROM[:2], "prediction=data"], "init.ckpt=run was trained with another prediction, under which"),
        ([*FROM[:2], "init.step=7"], "init.step=7 is not kept"),
        (["freeze=[blocks]"], "freeze=blocks matches no parameter of the network"),
    ],
)  # fmt: skip
def test_mistakes(cli: CommandLine, trained: Trained, overrides: list[str], message: str) -> None:
    trained()
    assert message in cli.error("train", "run_dir=new", *overrides)
    assert not Path("new").exists()
