"""adapter=lora through the command line: what is trained, saved, merged, resumed and refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import rfdit
from rfdit.checkpoint.saved_run import read_checkpoint
from rfdit.interchange.source import open_adapters, open_model
from tests.support.commands.command_line import TWENTY_STEPS, CommandLine, images
from tests.support.training.runs import Trained
from tests.support.training.states import assert_equal, resumed_state

LORA = [
    "init=weights",
    "init.ckpt=run",
    "adapter=lora",
    "adapter.r=4",
    "schedule=constant",
    "optimizer.lr=1e-2",
]
KINDS = ["lora", "loha", "lokr"]


def lora(cli: CommandLine, name: str = "lora", *overrides: str) -> Path:
    cli.train(*LORA, f"run_dir={name}", *overrides)
    return Path(name)


def file(run: Path) -> Path:
    return run / "checkpoints/last.ckpt"


def test_a_checkpoint_is_its_adapters(
    cli: CommandLine, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    base = trained(*TWENTY_STEPS)
    run = lora(cli)
    raw = torch.load(file(run), weights_only=True)
    assert {name.partition(".lora_")[2] for name in raw["state_dict"]} == {
        "A.default.weight",
        "B.default.weight",
    }
    assert raw["ema"]["ema"]["network"].keys() == {n.removeprefix("network.") for n in raw["state_dict"]}
    assert file(run).stat().st_size < file(base).stat().st_size / 20
    assert raw["rfdit"]["base"]["ckpt"] == str(file(base).absolute())
    assert "are trained" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_change_nothing_and_trained_ones_their_layers(
    cli: CommandLine, trained: Trained, kind: str
) -> None:
    base = read_checkpoint(file(trained(*TWENTY_STEPS))).weights("ema")
    options = [f"adapter={kind}", "adapter.r=4"]
    new = open_model(lora(cli, "new", *options, "optimizer.lr=0", "trainer.max_steps=1"))
    assert_equal(new.network, base)
    changed = open_model(lora(cli, "trained", *options)).network
    other = {name for name in base if not torch.equal(base[name], changed[name])}
    assert other == {
        n
        for n in base
        if ".blocks." in n and n.endswith((".qkv.weight", "proj.weight", "in.weight", "out.weight"))
    }


def test_images_of_adapters_are_those_of_the_merged_model(cli: CommandLine, trained: Trained) -> None:
    trained(*TWENTY_STEPS)
    lora(cli)
    one = ["prompts=[a red circle]", "count=2"]
    cli.sample("ckpt=lora", "out=adapted", *one)
    cli.sample("ckpt=run", "out=base", *one)
    cli.export("ckpt=lora", "out=exported")
    shutil.rmtree("lora")
    cli.sample("ckpt=exported", "out=merged", *one)
    assert np.array_equal(images(Path("adapted")), images(Path("merged")))
    assert not np.array_equal(images(Path("adapted")), images(Path("base")))


def test_several_adapters_with_factors(cli: CommandLine, trained: Trained) -> None:
    trained(*TWENTY_STEPS)
    lora(cli, "one")
    lora(cli, "two", "adapter.dora=true", "seed=1")
    from rfdit.interchange.adapted import with_adapters

    base = open_model("run")
    both = with_adapters(base, "ema", ["one:0.8", "two:-0.5"], open_adapters).weights("ema")
    one, two = (open_model(name).weights("ema") for name in ("one", "two"))
    for name, tensor in base.weights("ema").items():
        torch.testing.assert_close(
            both[name], tensor + 0.8 * (one[name] - tensor) - 0.5 * (two[name] - tensor)
        )
    cli.sample("ckpt=run", "adapters=[one:0.8,two]", "out=both", "prompts=[a red circle]")
    assert "adapters=one:nan: the factor after the colon must be finite" in cli.error(
        "sample", "ckpt=run", "adapters=[one:nan]", "prompts=[a]"
    )
    assert "adapters=run: " in cli.error("sample", "ckpt=run", "adapters=[run]", "prompts=[a]")


@pytest.mark.slow
def test_resumed_it_is_the_run_that_was_not_interrupted(cli: CommandLine, trained: Trained) -> None:
    trained(*TWENTY_STEPS)
    whole = lora(cli, "whole", "trainer.max_steps=4")
    part = lora(cli, "part", "trainer.max_steps=2")
    lora(cli, "part", "trainer.max_steps=4", "ckpt=last")
    assert_equal(resumed_state(part), resumed_state(whole))


@pytest.mark.slow
@pytest.mark.parametrize("options", [["model.recompute=full"], ["trainer.precision=bf16"], ["compile=true"]])
def test_it_trains_with(cli: CommandLine, trained: Trained, options: list[str]) -> None:
    trained(*TWENTY_STEPS)
    plain = read_checkpoint(file(lora(cli, "plain", "trainer.precision=fp32"))).network
    other = read_checkpoint(file(lora(cli, "other", "trainer.precision=fp32", *options))).network
    tolerance = 0.2 if "trainer.precision=bf16" in options else 1e-3
    for name, tensor in plain.items():
        assert (other[name] - tensor).norm() <= tolerance * tensor.norm(), name


def test_it_is_resumed_with_what_it_was_started_with(cli: CommandLine, trained: Trained) -> None:
    trained(*TWENTY_STEPS)
    lora(cli)
    begin = "ckpt=lora/checkpoints/last.ckpt"
    base = f"of the ema weights of {file(Path('run')).absolute()}"
    for start, message in (
        ([], f"{begin} holds adapters {base}, and adapter=none trains the network itself; give the adapter and init"),
        (LORA[2:], f"ckpt holds adapters {base}, and init=none has no weights to put them beside; give"),
        ([*LORA, "init.weights=raw"], "ckpt holds adapters of the weights "),
        ([*LORA, "adapter.r=2"], f"{begin} belongs to another network or optimizer: here adapter.r=2 (there 4)"),
        ([*LORA, "init.ckpt=gone"], "init.ckpt=gone: gone does not exist"),
    ):  # fmt: skip
        found = cli.error("train", "run_dir=lora", "ckpt=last", "trainer.max_steps=4", *start)
        assert found.startswith(message)
    message = cli.error("train", *LORA, "run_dir=run", "ckpt=last", "trainer.max_steps=40")
    assert message.startswith(
        "ckpt=run/checkpoints/last.ckpt holds a whole network, and adapter trains beside one"
    )


def test_another_base_is_refused(cli: CommandLine, trained: Trained) -> None:
    trained(*TWENTY_STEPS)
    lora(cli)
    shutil.move("run", "moved")
    message = cli.error("sample", "ckpt=lora", "prompts=[a]")
    assert "holds adapters, and their base cannot be opened" in message
    assert message.endswith("give base=..., where it is now")
    cli.sample("ckpt=lora", "base=moved", "prompts=[a]", "out=out")
    assert np.array_equal(
        np.asarray(rfdit.load("lora", base="moved")("a", steps=2)[0]), images(Path("out"))[0]
    )
    cli.train("init=weights", "init.ckpt=lora", "init.base=moved", "run_dir=further", "trainer.max_steps=1")
    cli.train("run_dir=run")  # another one in its place
    assert "holds adapters of the weights" in cli.error("sample", "ckpt=lora", "prompts=[a]")
    assert "holds adapters of the weights" in cli.error(
        "train", *LORA, "run_dir=lora", "ckpt=last", "trainer.max_steps=9"
    )
    assert "is a whole model, without adapters" in cli.error(
        "sample", "ckpt=run", "base=moved", "prompts=[a]"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter=lora"], "give init=weights init.ckpt=..."),
        ([*LORA, "adapter.targets=proj"], "adapter.targets=proj matches no layer of the model"),
        ([*LORA, r"adapter.targets='.*q_norm'"], "matches blocks.0.c.q_norm, which is not a linear layer"),
        ([*LORA, "adapter.targets='('"], "adapter.targets=( is not a regular expression"),
        ([*LORA, "model.depth=3"], "whose backbone.modulation.linear.weight does not fit"),
        ([*LORA, "optimizer=adamw_mup"], "optimizer=adamw_mup has no learning rates for adapters"),
        ([*LORA, "freeze=[conditioner.*]"], "has no effect with an adapter"),
    ],
)  # fmt: skip
def test_mistakes(cli: CommandLine, trained: Trained, overrides: list[str], message: str) -> None:
    trained()
    assert message in cli.error("train", "run_dir=new", *overrides)
