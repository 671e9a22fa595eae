"""Checkpoints of which every rank writes its part: safetensors files and plain data, no code.

A sharded checkpoint is a folder. `NAME.ckpt` is a symbolic link to it, so that one rename replaces the
old state by the new: a kill at any moment leaves one of them whole.
"""

import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

SECTIONS = ("state_dict", "ema", "optimizer_states")  # of a checkpoint, whose tensors are sharded
REST = "rest.pt"  # all else; the sections' tensors are there by shape and dtype alone
SUFFIX = ".shards"
Keys = tuple[str | int, ...]  # the keys that lead to a tensor of a checkpoint


def is_sharded(path: Path) -> bool:
    """Whether a sharded checkpoint is there."""
    return (path / REST).is_file()


def new_folder(path: Path, step: int) -> str:
    """The name of the folder for a new state of the checkpoint `path`; rank 0's choice holds for all."""
    return f"{path.stem}.{step:08d}.{secrets.token_hex(3)}{SUFFIX}"


def write_sharded(
    checkpoint: dict[str, Any],
    path: Path,
    folder: Path,
    *,
    group: torch.distributed.ProcessGroup | None = None,
) -> None:
    """Writes this rank's part of a checkpoint; all ranks call, with equal values but for the tensors.

    folder: as of `new_folder`, beside `path`, equal on all ranks. group: of all ranks, on CPUs; by
    default the one that training uses. Raises OSError on every rank if one of them cannot write.
    """
    tensors = {_name(keys): tensor for keys, tensor in _tensors(checkpoint)}
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    first = torch.distributed.get_rank() == 0
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group)
        if first:
            _publish(checkpoint, folder, path)
    except Exception as error:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
        raise OSError(f"{path} cannot be written: {_first_cause(error)}") from error


def _publish(checkpoint: dict[str, Any], folder: Path, path: Path) -> None:
    """Writes the rest, makes all of it last, and lets the name mean the new folder."""
    rest = replaced(
        checkpoint, lambda keys, tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    )
    torch.save(rest, folder / REST)
    for file in (*folder.iterdir(), folder):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    link = path.with_name(f".{path.name}.{folder.name}")
    link.symlink_to(folder.name)
    link.replace(path)
    remove_shards(path)


def remove_shards(path: Path) -> None:
    """Removes what lies beside a checkpoint of the states that its name meant before."""
    for folder in path.parent.glob(f"{path.stem}.*{SUFFIX}"):
        if folder.name != path.resolve().name:
            shutil.rmtree(folder, ignore_errors=True)


def read_rest(path: Path) -> dict[str, Any]:
    """A sharded checkpoint without its tensors, which are on the meta device."""
    return torch.load(path / REST, map_location="cpu", weights_only=True)


def read_sharded(path: Path, *, empty: Callable[[Keys, Tensor], Tensor] | None = None) -> dict[str, Any]:
    """The checkpoint that was given to `write_sharded`, by however many ranks it was written.

    empty: for a tensor's keys and its form on the meta device, what it is read into, perhaps a DTensor;
        all ranks call then. By default whole tensors on the CPU, read by this process alone.
    """
    rest = read_rest(path)
    make = empty or (lambda keys, form: torch.empty_like(form, device="cpu"))
    found = {keys: make(keys, form) for keys, form in _tensors(rest)}
    tensors = {_name(keys): tensor for keys, tensor in found.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=empty is None)
    return replaced(rest, lambda keys, form: tensors[_name(keys)])


def _name(keys: Keys) -> str:
    return "/".join(map(str, keys))


def _tensors(checkpoint: Mapping[str, Any]) -> Iterator[tuple[Keys, Tensor]]:
    """The tensors of the sharded sections, with the keys that lead to them."""
    for section in SECTIONS:
        yield from _walk((section,), checkpoint.get(section))


def _walk(keys: Keys, node: Any) -> Iterator[tuple[Keys, Tensor]]:
    if isinstance(node, Tensor):
        yield keys, node
    elif isinstance(node, Mapping):
        for key, child in node.items():
            yield from _walk((*keys, key), child)
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from _walk((*keys, i), child)


def replaced(checkpoint: Mapping[str, Any], new: Callable[[Keys, Tensor], Tensor]) -> dict[str, Any]:
    """The checkpoint with other tensors in the sharded sections; `new` gets a tensor's keys and the tensor."""
    return {
        name: _rebuilt((name,), node, new) if name in SECTIONS else node for name, node in checkpoint.items()
    }


def _rebuilt(keys: Keys, node: Any, new: Callable[[Keys, Tensor], Tensor]) -> Any:
    if isinstance(node, Tensor):
        return new(keys, node)
    if isinstance(node, Mapping):
        return {key: _rebuilt((*keys, key), child, new) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(_rebuilt((*keys, i), child, new) for i, child in enumerate(node))
    return node


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
