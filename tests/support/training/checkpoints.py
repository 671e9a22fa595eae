"""Checkpoints for tests of export and conversion."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rfdit.checkpoint.saved_run import SavedRun, checkpoint_header, read_checkpoint
from rfdit.checkpoint.saved_run import write_checkpoint as write
from rfdit.config.build import build_network
from rfdit.storage.checksum import json_digest
from tests.support.commands.composing import composed
from tests.support.models.networks import randomise

MakeCheckpoint = Callable[..., SavedRun]
TINY = ["model.width=24", "model.depth=2", "model.num_heads=2", "text_encoder.width=12"]
LABELS = [*TINY, "model=dit", "conditioner=labels", "conditioner.num_classes=5"]
PIXELS = {"name": "identity", "channels": 3, "downsampling": 1, "scale": 1.0, "shift": 0.0}


def write_checkpoint(path: Path, *overrides: str, latents: dict[str, object] = PIXELS) -> SavedRun:
    """A checkpoint of a small network with random weights, as train.py with the given settings lays it out.

    All parts of the network have an effect, which training reaches only after many steps, since some start
    at zero.
    """
    config = composed("train", *TINY, *overrides)
    state = randomise(build_network(config)).state_dict()
    average = {key: x * 3 if key.startswith("conditioner.") else x.clone() for key, x in state.items()}
    write(
        {
            "rfdit": checkpoint_header(config, latents),
            "global_step": 7,
            "state_dict": {f"network.{key}": tensor for key, tensor in state.items()},
            "ema": {"ema": {"updates": 7, "network": average}},
        },
        path,
    )
    return read_checkpoint(path)


def forge(folder: Path, **config: object) -> None:
    """Writes other groups into the settings of an exported folder, with their checksum, as a stranger may."""
    file = folder / "config.json"
    description = json.loads(file.read_text())
    del description["sha256"]
    description["config"] |= config
    description["sha256"] = json_digest(description, digits=64)
    file.write_text(json.dumps(description))


@pytest.fixture
def checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """`write_checkpoint` to a file of the test's own."""
    return functools.partial(write_checkpoint, tmp_path / "run.ckpt")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)
