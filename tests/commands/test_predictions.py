"""Runs of every prediction: trained, resumed, sampled, exported and loaded as a velocity network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import rfdit
from rfdit.checkpoint.saved_run import read_checkpoint
from tests.support.commands.command_line import CommandLine, images

pytestmark = pytest.mark.slow
NAMES = ["data", "noise", "edm"]
LAST = Path("run/checkpoints/last.ckpt")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_resumed_sampled_and_exported(cli: CommandLine, name: str) -> None:
    chosen = [f"prediction={name}", f"weighting={name}"]
    cli.train("run_dir=run", *chosen, "trainer.max_steps=2")
    shutil.copytree("run", "two")
    cli.train("run_dir=run", *chosen, "ckpt=last", "trainer.max_steps=4", "schedule=constant")
    shutil.copytree("two", "again")
    cli.train("run_dir=again", *chosen, "ckpt=last", "trainer.max_steps=4", "schedule=constant")
    saved, again = read_checkpoint(LAST), read_checkpoint(Path("again/checkpoints/last.ckpt"))
    assert all(torch.equal(x, again.network[key]) for key, x in saved.network.items())
    assert not any("network" in key for key in saved.network)  # no prefix of a wrapper
    request = ["prompts=[a red circle]", "sampler=heun", "sampler.steps=2", "guidance=cfg"]
    cli.sample("ckpt=run", "out=one", *request)
    cli.export("ckpt=run", "out=exported")
    cli.sample("ckpt=exported", "out=two_of_it", *request)
    assert np.array_equal(images(Path("one")), images(Path("two_of_it")))
    assert f"| predicts | {name} |" in Path("exported/README.md").read_text()
    assert repr(rfdit.load("exported", accelerator="cpu")).startswith("Model(MMDiT of ")


def test_what_does_not_fit_is_one_sentence(cli: CommandLine) -> None:
    cli.train("run_dir=run", "prediction=data")
    message = cli.error("train", "run_dir=run", "ckpt=last", "prediction=noise", "trainer.max_steps=5")
    assert message.startswith("ckpt=run/checkpoints/last.ckpt belongs to another network or optimizer: here ")
    assert "prediction._target_=rfdit.model.NoisePrediction" in message
    message = cli.error("train", "run_dir=run", "ckpt=last", "prediction.t_min=0.1", "trainer.max_steps=5")
    assert "prediction" in message
    assert cli.error("export", "ckpt=run", "out=folder", "format=diffusers") == (
        "format=diffusers supports prediction=velocity, which its schedulers integrate, not "
        "prediction._target_=rfdit.model.DataPrediction; use format=safetensors"
    )
