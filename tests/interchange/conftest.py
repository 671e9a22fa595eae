"""Checkpoints to take elsewhere."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rfdit.config import build_network
from rfdit.training.checkpoint import SavedRun, read_checkpoint
from rfdit.training.checkpoint import write_checkpoint as write
from tests.model.conftest import randomise
from tests.test_config import composed

MakeCheckpoint = Callable[..., SavedRun]
TINY = ["model.width=24", "model.depth=2", "model.num_heads=2", "text_encoder.width=12"]
LABELS = [*TINY, "model=dit", "conditioner=labels", "conditioner.num_classes=5"]
PIXELS = {"name": "identity", "channels": 3, "downsampling": 1, "scale": 1.0, "shift": 0.0}


def write_checkpoint(path: Path, *overrides: str, latents: dict[str, object] = PIXELS) -> SavedRun:
    """A checkpoint of a small network with random weights, as train.py with the given settings lays it out.

    All of a network is at work in it, which takes training many steps: it begins with zeros.
    """
    config = composed("train", *TINY, *overrides)
    state = randomise(build_network(config)).state_dict()
    average = {key: x * 3 if key.startswith("conditioner.") else x.clone() for key, x in state.items()}
    write(
        {
            "rfdit": {"config": config, "latents": latents},
            "global_step": 7,
            "state_dict": {f"network.{key}": tensor for key, tensor in state.items()},
            "ema": {"ema": {"updates": 7, "network": average}},
        },
        path,
    )
    return read_checkpoint(path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """`write_checkpoint` to a file of the test's own."""
    return functools.partial(write_checkpoint, tmp_path / "run.ckpt")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)
