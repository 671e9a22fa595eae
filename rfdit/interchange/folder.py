"""A model in a folder that anybody may open: safetensors and JSON, and nothing that runs."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import rfdit
from rfdit.checksum import crc32_of
from rfdit.training.checkpoint import SavedRun

FORMAT = "rfdit-1"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# What a model is rebuilt from and how it was trained. Data and loggers stay out: they may name private
# places, and addresses with keys in them.
GROUPS = ("model", "conditioner", "text_encoder", "autoencoder", "objective", "sampler", "guidance")


def check_free(out: Path) -> None:
    """Raises ValueError if there is something where a folder is to be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={out} exists and is not empty; name another folder, or remove it")


def travelling(config: dict[str, Any]) -> dict[str, Any]:
    """The groups of a resolved training configuration that go with its weights."""
    return {group: config[group] for group in GROUPS if group in config}


def write_folder(
    out: Path, saved: SavedRun, weights: str, *, card: str, prediction: str = "velocity"
) -> None:
    """The weights of a name with all that is needed to build their network again.

    card: the model card. prediction: what the network was trained to predict.
    Raises ValueError for weights that are not there, or a folder that is not empty.
    """
    state = saved.weights(weights)
    check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, out / WEIGHTS)
    (out / CARD).write_text(card)
    description = {
        "format": FORMAT,
        "rfdit": rfdit.__version__,
        "weights": weights,
        "step": saved.step,
        "prediction": prediction,
        "weights_crc32": crc32_of(out / WEIGHTS),
        "latents": saved.latents,
        "config": travelling(saved.config),
    }
    # Last, since it is what makes the folder one of ours.
    (out / CONFIG).write_text(json.dumps(description, indent=2) + "\n")


def is_folder(path: Path) -> bool:
    """Whether `write_folder` made it."""
    try:
        return bool(json.loads((path / CONFIG).read_text())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_folder(folder: Path, *, prediction: str = "velocity") -> SavedRun:
    """What `write_folder` wrote.

    prediction: what its network has to predict.
    Raises ValueError for one that is damaged, or whose network predicts something else.
    """
    try:
        description = json.loads((folder / CONFIG).read_text())
        weights, predicted = description["weights"], description["prediction"]
        state: dict[str, Tensor] = load_file(folder / WEIGHTS)
        crc = crc32_of(folder / WEIGHTS)
        changed = description.get("weights_crc32", crc) != crc  # older folders have none
        saved = SavedRun(
            path=folder,
            step=description["step"],
            config=description["config"],
            latents=description["latents"],
            network=state if weights == "raw" else {},
            ema={} if weights == "raw" else {weights: state},
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} cannot be read as a model that rfdit exported ({type(error).__name__}): it is damaged "
            f"or lacks {CONFIG} or {WEIGHTS}"
        ) from None
    if changed:
        raise ValueError(
            f"{folder} is damaged: its {WEIGHTS} is not what was written; copy or export it again"
        )
    if predicted != prediction:
        raise ValueError(
            f"{folder} holds a network that predicts {predicted}, not {prediction}, so rectified flow cannot "
            "sample it"
        )
    return saved
