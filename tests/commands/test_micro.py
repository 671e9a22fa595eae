"""Micro-conditioning from the command line: training, resuming, sampling by name, and names that do not exist."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands.command_line import FEW_SHAPES, CommandLine, images, metrics

NUMBERS = ["micro=sdxl", "+conditioner.micro.width=32", FEW_SHAPES]
QUICK = [
    "schedule=constant",
    "schedule.warmup_steps=0",
    "optimizer.lr=1e-2",
    "callbacks.ema.profiles.ema.decay=0.5",
]


@pytest.mark.slow
def test_training_sampling_and_resuming(cli: CommandLine, drawn_shapes: None) -> None:
    cli.train("run_dir=run", *NUMBERS, *QUICK, "trainer.max_steps=6")
    cli.train("run_dir=parts", *NUMBERS, *QUICK, "trainer.max_steps=3")
    cli.train("run_dir=parts", "ckpt=last", *NUMBERS, *QUICK, "trainer.max_steps=6")
    cli.train("run_dir=plain", FEW_SHAPES, *QUICK, "trainer.max_steps=6")
    curves = [[row["train/loss"] for row in metrics(Path(run))] for run in ("run", "parts", "plain")]
    assert curves[0] == curves[1]
    assert curves[0][0] == curves[2][0]  # it begins as it is without numbers
    assert curves[0][-1] != curves[2][-1]
    sample = ["ckpt=run", "prompts=[a small red circle]"]
    cli.sample(*sample, "out=own")
    cli.sample(*sample, "out=same", "micro.width=32", "micro.target_height=32")
    cli.sample(*sample, "out=other", "micro.width=90", "micro.crop_top=20")
    own, same, other = (images(Path(out)) for out in ("own", "same", "other"))
    assert np.array_equal(own, same)
    assert not np.array_equal(own, other)
    record = json.loads(Path("other/samples.json").read_text())
    assert record["config"]["micro"] == {"width": 90.0, "crop_top": 20.0}
    message = cli.error("sample", *sample, "out=no", "micro.widht=90")
    assert message.startswith(
        "micro.widht is not a field with which the model was trained; it has original_height"
    )
    message = cli.error("sample", "ckpt=plain", "prompts=[a circle]", "out=no", "micro.width=90")
    assert message == "micro.width has no effect: the model was trained without micro-conditioning"
    message = cli.error("train", "run_dir=parts", "ckpt=last", FEW_SHAPES, *QUICK, "trainer.max_steps=9")
    assert "belongs to another network" in message
    assert "conditioner.micro" in message
    message = cli.error("export", "ckpt=run", "format=diffusers", "out=folder")
    assert message == "format=diffusers does not support conditioner.micro; use format=safetensors"


@pytest.mark.slow
def test_a_number_that_no_sample_has_ends_the_run(cli: CommandLine, drawn_shapes: None) -> None:
    message = cli.error("train", "run_dir=run", *NUMBERS, "+conditioner.micro.aestetic=6")
    assert "missing_number" in message
    assert "there is no json.aestetic; json has " in message
    assert "\n" not in message
