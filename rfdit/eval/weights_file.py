"""Files of weights: read without running what they hold, and told apart by their bytes."""

import hashlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor


def load_weights(file: Path, *, setting: str) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or a PyTorch file that loads as weights only.

    Raises ValueError, naming `setting`, if there is no such file or it holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"{setting}: there is no file {file}")
    try:
        state: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{setting}: {file} holds no weights that load without unpickling code: {reason}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{setting}: {file} is no file of tensors by name")
    return state


def sha256_of(file: Path) -> str:
    """Of the file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
