"""Files of weights, read without running code from them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfdit.storage.untrusted import reading


def load_weights(file: Path, *, setting: str) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or a PyTorch file that loads as weights only.

    Raises ValueError, naming `setting`, if there is no such file or it holds something else.
    """
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"{setting}: there is no file {file}")
    with reading(f"{setting}: {file} holds no weights that load without unpickling code"):
        state: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{setting}: {file} is not a file of tensors by name")
    return state
