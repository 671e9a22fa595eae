"""rfdit posthoc, from a run to images."""

from pathlib import Path

import pytest
import torch

from rfdit.checkpoint.saved_run import SavedRun, read_checkpoint
from rfdit.eval.protocol_settings import weights_settings
from tests.support.commands.command_line import CommandLine
from tests.support.training.runs import Trained

pytestmark = pytest.mark.slow

STEPS = 24
POWER = [
    "ema=power", "callbacks.ema.snapshots.every_n_steps=3", f"trainer.max_steps={STEPS}", "optimizer.lr=2e-2",
    "schedule.warmup_steps=0", "+callbacks.ema.profiles.exact={_target_: rfdit.ema.PowerFunction, std: 0.12}",
]  # fmt: skip


@pytest.fixture
def run(trained: Trained) -> SavedRun:
    """A run with snapshots of two averages, and of a third of the length that is to be rebuilt."""
    return read_checkpoint(trained(*POWER) / "checkpoints/last.ckpt")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum(((a[name] - b[name]).double().square().sum().item() for name in a), 0.0) ** 0.5


def test_it_rebuilds_the_average_that_was_tracked(cli: CommandLine, run: SavedRun) -> None:
    for path in Path("run/ema").glob("exact_*"):
        path.unlink()
    printed = cli.posthoc("ckpt=run", "std=0.12", "out=out.ckpt")
    assert printed.splitlines()[-1].startswith("std=0.12 at step 24 from 16 snapshots, profile error ")
    made = read_checkpoint(Path("out.ckpt"))
    assert made.step == STEPS
    exact, rebuilt = run.ema["exact"], made.ema["ema"]
    assert list(rebuilt) == list(exact)
    # Float16's rounding included, far nearer than any average there is.
    nearest = min(distance(exact, run.ema[name]) for name in ("ema", "power_05", "power_10"))
    assert distance(exact, rebuilt) < nearest / 5
    frozen = [name for name in exact if torch.equal(exact[name], run.network[name])]
    assert frozen
    assert all(torch.equal(rebuilt[name], exact[name]) for name in frozen)


def test_a_stored_length_and_step_give_the_snapshot(cli: CommandLine, run: SavedRun) -> None:
    printed = cli.posthoc("ckpt=run", "std=0.1", f"step={STEPS}")
    out = Path("run/posthoc/std_0.1_step_00000024.ckpt")
    assert "profile error 0.00%" in printed
    assert "far from" not in printed
    short = cli.posthoc("ckpt=run", "std=0.01")
    assert short.startswith("std=0.01 is far from the snapshots' profiles: ")
    assert f"sample.py ckpt={out}" in printed
    of = weights_settings(read_checkpoint(out).config, "ema")  # for the protocol of what is measured of it
    assert of == {"name": "ema", "profile": "PowerFunction", "std": 0.1}
    rebuilt, stored = read_checkpoint(out).ema["ema"], run.ema["power_10"]
    for name, value in stored.items():
        torch.testing.assert_close(rebuilt[name], value, rtol=5e-4, atol=1e-7)


def test_an_average_of_adapters_is_one_of_adapters(cli: CommandLine, trained: Trained) -> None:
    trained("trainer.max_steps=2")
    cli.train("run_dir=lora", *POWER, "init=weights", "init.ckpt=run", "adapter=lora", "adapter.r=2")
    run = read_checkpoint(Path("lora/checkpoints/last.ckpt"))
    for path in Path("lora/ema").glob("exact_*"):
        path.unlink()
    cli.posthoc("ckpt=lora", "std=0.12", "out=out.ckpt")
    made = read_checkpoint(Path("out.ckpt"))
    assert made.base == run.base
    exact, rebuilt = run.ema["exact"], made.ema["ema"]
    assert rebuilt.keys() == exact.keys() == run.network.keys()
    nearest = min(distance(exact, run.ema[name]) for name in ("ema", "power_05", "power_10"))
    assert distance(exact, rebuilt) < nearest / 5
    cli.sample("ckpt=out.ckpt", "prompts=[a small red circle]", "out=images")
    cli.sample("ckpt=run", "adapters=[out.ckpt:0.5]", "prompts=[a small red circle]", "out=half")
    assert Path("images/00000.png").read_bytes() != Path("half/00000.png").read_bytes()


def test_sample_reads_it(cli: CommandLine, run: SavedRun) -> None:
    cli.posthoc("ckpt=run", "std=0.07", "step=12", "out=out.ckpt")
    request = ["prompts=[a small red circle]", "guidance.scale=1"]
    cli.sample("ckpt=out.ckpt", *request, "out=images")
    assert Path("images/00000.png").exists()
    assert cli.error("sample", "ckpt=out.ckpt", *request, "weights=raw") == (
        "weights=raw is not in ckpt=out.ckpt; it has ema"
    )
    assert cli.error("train", "run_dir=new", "ckpt=out.ckpt", *POWER) == (
        "ckpt=out.ckpt holds an average for sampling only, from which training cannot resume"
    )


def test_sample_reads_any_average_of_a_run(cli: CommandLine, run: SavedRun) -> None:
    request = ["ckpt=run", "prompts=[a small red circle]"]
    cli.sample(*request, "weights=power_10", "out=images")
    message = cli.error("sample", *request, "weights=power_20")
    assert message.startswith("weights=power_20 is not in ckpt=run/checkpoints/last.ckpt; ")
    assert message.endswith("it has ema, power_05, power_10, exact, raw")
    assert torch.equal(
        run.weights("ema")["backbone.patches.proj.bias"], run.ema["ema"]["backbone.patches.proj.bias"]
    )


def test_mistakes_end_in_one_sentence(cli: CommandLine, run: SavedRun) -> None:
    assert cli.error("posthoc", "ckpt=run") == "std is not set; give std=..."
    assert cli.error("posthoc", "std=0.1").startswith("ckpt is not set; give ckpt=RUN_FOLDER")
    assert cli.error("posthoc", "ckpt=run", "std=0.3").startswith(
        "std=0.3 must be more than 0 and less than 0.2887"
    )
    assert cli.error("posthoc", "ckpt=run", "std=0.1", "step=13") == (
        "step=13 has no snapshot; the nearest of the 8 steps with snapshots is 12"
    )
    cli.train("run_dir=plain")
    assert cli.error("posthoc", "ckpt=plain", "std=0.1").endswith(
        "without snapshots in plain/ema; train with ema=power"
    )


def test_averages_that_began_apart_are_not_mixed(cli: CommandLine) -> None:
    """A profile that was added when a run was resumed does not include the steps before."""
    power = "ema=power", "callbacks.ema.every_n_steps=2"
    cli.train("run_dir=run", "trainer.max_steps=3", *power, "callbacks.ema.profiles.power_05=null")
    cli.train("run_dir=run", "trainer.max_steps=6", *power, "ckpt=last")
    assert cli.error("posthoc", "ckpt=run", "std=0.1") == (
        "run/ema has averages that began at different steps (power_10 at step 0, power_05 at step 3); move all but "
        "one kind away"
    )
