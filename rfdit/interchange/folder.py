"""A model in a folder of safetensors and JSON, which can be opened without running code."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import rfdit
from rfdit.checkpoint.registry import CHECKED, GROUPS, check_parts
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.pretrained.hub import is_hub_name
from rfdit.storage.atomic import write_folder_atomically
from rfdit.storage.checksum import crc32_of, json_digest
from rfdit.storage.folders import make_folder
from rfdit.storage.untrusted import explained, read_json, unreadable

FORMAT = "rfdit-3"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def check_free(out: Path) -> None:
    """Raises ValueError if a folder to be written is there already and is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={out} exists and is not empty; name another folder, or remove it")


def public_config(config: dict[str, Any], *, adapter: bool = False) -> dict[str, Any]:
    """The groups of a resolved training configuration that go with its weights. adapter: these are adapters.

    Those of data and loggers stay behind, since they may have private paths and addresses with keys in them; so does
    an objective with a teacher, which is the path of another checkpoint.
    """
    groups = {group: config[group] for group in (CHECKED if adapter else GROUPS) if group in config}
    objective = groups.get("objective")
    if isinstance(objective, dict) and "teacher" in objective:
        del groups["objective"]
    return groups


def _without_paths(node: Any) -> Any:
    """Settings without the folders in which encoders' weights are here; names of the hub stay."""
    if not isinstance(node, dict):
        return node
    return {
        name: _without_paths(value)
        for name, value in node.items()
        if name != "source" or not isinstance(value, str) or is_hub_name(value)
    }


def write_folder(out: Path, saved: SavedRun, weights: str, *, card: str) -> None:
    """Writes named weights with all that is needed to rebuild their network. card: the model card.

    Raises ValueError for weights that do not exist, or a folder that is not empty.
    """
    state = saved.weights(weights)
    check_free(out)
    make_folder(out, setting="out")

    def write(folder: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
        (folder / CARD).write_text(card)
        write_description(folder / CONFIG, saved, weights, folder / WEIGHTS)

    write_folder_atomically(out, write, durable=True)


def write_description(file: Path, saved: SavedRun, weights: str, tensors: Path) -> None:
    """Writes all that is needed to rebuild the network whose weights are in the file `tensors`, or their base."""
    base = {} if saved.base is None else {"base": asdict(saved.base)}
    description = {
        "format": FORMAT,
        "rfdit": rfdit.__version__,
        "weights": weights,
        "step": saved.step,
        "weights_crc32": crc32_of(tensors),
        "latents": saved.latents,
        "class_names": saved.class_names,
        "config": _without_paths(public_config(saved.config, adapter=saved.base is not None)),
        **base,
    }
    description["sha256"] = _digest(description)
    file.write_text(json.dumps(description, indent=2) + "\n")


def is_folder(path: Path) -> bool:
    """True for an exported folder, whole or damaged."""
    return (path / CONFIG).is_file()


def is_complete(path: Path) -> bool:
    """True for a folder with all files of an exported one."""
    return is_folder(path) and (path / WEIGHTS).is_file()


def read_folder(folder: Path) -> SavedRun:
    """Reads a folder of `write_folder`: settings and weights are those that were written.

    Raises ValueError for a folder that is damaged, and OSError for one that cannot be read.
    """
    return read_described(folder, CONFIG, WEIGHTS)


def read_described(
    folder: Path, config: str, tensors: str, *, our_name: Callable[[str], str] = str
) -> SavedRun:
    """The model, or the adapters, that the file `config` of a folder describes; raises errors as `read_folder` does.

    tensors: the file of its weights. our_name: the name of a tensor from that in the file.
    """
    wrong = f"{folder} cannot be read as a model that rfdit exported"
    if missing := [name for name in (config, tensors) if not (folder / name).is_file()]:
        raise ValueError(f"{wrong}: it lacks {missing[0]}")
    description = read_json(folder / config)
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        raise ValueError(f"{wrong}: its {config} is that of something else")
    if description.get("format") != FORMAT:
        raise ValueError(f"{wrong}: its format is {description.get('format')}, and this rfdit reads {FORMAT}")
    if description.pop("sha256", None) != _digest(description):
        raise ValueError(_damaged(folder, config) + _strange(description["config"]))
    with explained(wrong):
        weights, base = description["weights"], description.get("base")
        read = _read_weights(folder, tensors, description["weights_crc32"])
        state = {our_name(name): tensor for name, tensor in read.items()}
        return SavedRun.checked(
            folder,
            step=description["step"],
            config=public_config(description["config"], adapter=base is not None),
            latents=description["latents"],
            class_names=description.get("class_names"),
            network=state if weights == "raw" else {},
            ema={} if weights == "raw" else {weights: state},
            base=base,
        )


def _read_weights(folder: Path, tensors: str, crc32: int) -> dict[str, Tensor]:
    file = folder / tensors
    try:
        if crc32_of(file) != crc32:
            raise ValueError(_damaged(folder, tensors))
        state: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a file of safetensors ({error})") from None
    except OSError as error:
        raise unreadable(str(file), error) from None
    return state


def _digest(description: dict[str, Any]) -> str:
    """The checksum of a description, among which is that of the weights."""
    return json_digest(description, digits=64)


def _strange(config: dict[str, Any]) -> str:
    """The end of a message: what is wrong with the settings apart from their checksum, if anything is."""
    try:
        check_parts(public_config(config))
    except ValueError as error:
        return f" ({error})"
    return ""


def _damaged(folder: Path, file: str) -> str:
    return f"{folder} is damaged: its {file} differs from its checksum; copy or export it again"
