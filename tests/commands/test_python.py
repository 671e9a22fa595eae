"""rfdit from Python: composing, training and loading as the command line does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rfdit
from rfdit.config.build import CONFIG_DIR
from tests.support.commands.command_line import CommandLine, fast


def test_training_is_that_of_the_command_line_to_the_last_bit(cli: CommandLine) -> None:
    cli.train("run_dir=typed")
    config = rfdit.compose("train", fast("run_dir=called", "trainer.max_steps=9"))
    config.trainer.max_steps = 3
    run = rfdit.train(config)
    assert (run.folder, run.step) == (Path("called"), 3)
    assert run.metrics["train/loss"] > 0
    assert config.ckpt is None
    typed, called = (
        torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("typed", "called")
    )
    assert all(torch.equal(typed[name], called[name]) for name in typed)
    assert repr(rfdit.load("called")).startswith("Model(MMDiT of ")


@pytest.mark.parametrize(
    ("command", "overrides", "sentence"),
    [
        ("trane", [], r"^command=trane does not exist; choose from train, sample"),
        ("train", ["size=huge"], r"^size=huge does not exist; choose from .*tiny"),
        (
            "train",
            ["trainer.max_step=3"],
            r"^trainer\.max_step is not a setting; did you mean trainer\.max_steps\?",
        ),
    ],
)
def test_a_mistake_is_one_sentence(command: str, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rfdit.compose(command, overrides)
    with pytest.raises(ValueError, match=r"^config_dir=nowhere is not a folder$"):
        rfdit.compose("train", config_dir="nowhere")


def test_what_cannot_be_trained_here_is_refused() -> None:
    config = rfdit.compose("train", ["trainer.devices=2", "strategy=ddp", "run_dir=run"])
    with pytest.raises(
        ValueError, match=r"^trainer\.devices=2: rfdit\.train trains on one device; start several"
    ):
        rfdit.train(config)


def test_importing_rfdit_is_light() -> None:
    program = (
        "import sys, rfdit; print([name for name in ('torch', 'hydra', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {"compose", "load", "train"} <= set(dir(rfdit))


@pytest.mark.parametrize("preset", sorted(path.stem for path in (CONFIG_DIR / "debug").glob("*.yaml")))
def test_debug_presets_run(cli: CommandLine, preset: str) -> None:
    settings = [s for s in fast() if not s.startswith(("trainer.max_steps", "trainer.val", "trainer.log"))]
    config = rfdit.compose("train", [*settings, "run_dir=run", f"debug={preset}"])
    steps = {"fast_dev_run": 2, "limit": 2, "overfit": 6, "anomaly": 2}[preset]
    config.trainer.max_steps = steps
    assert rfdit.train(config).step == steps


def test_overfitting_trains_on_one_batch_alone(cli: CommandLine) -> None:
    config = rfdit.compose("train", [*fast("run_dir=run"), "debug=overfit", "data.batch_size=4"])
    assert config.data.limit == 4
