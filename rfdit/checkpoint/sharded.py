"""Sharded checkpoints: each rank writes a part of the tensors; safetensors files and plain data, no code.

A sharded checkpoint is a folder. `NAME.ckpt` is a symbolic link to it, so that one rename replaces the
old state with the new: a kill at any moment leaves one of them whole.
"""

import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rfdit.checkpoint.parts import PARTS, Part, damaged, read_parts, summary, verify_checksums
from rfdit.storage.atomic import flush, write_atomically
from rfdit.storage.checksum import changed_record

SECTIONS = ("state_dict", "ema", "optimizer_states")  # parts of a checkpoint whose tensors are sharded
REST = "rest.pt"  # everything else, with meta tensors in place of those
SUFFIX = ".shards"
TensorKeys = tuple[str | int, ...]  # the keys that lead to a tensor of a checkpoint


def is_sharded(path: Path) -> bool:
    """True if there is a sharded checkpoint at the path."""
    return (path / REST).is_file()


def new_folder(path: Path, step: int) -> str:
    """A name for the folder of a new state of the checkpoint `path`, to be chosen by rank 0 for all."""
    return f"{path.stem}.{step:08d}.{secrets.token_hex(3)}{SUFFIX}"


def write_sharded(
    checkpoint: dict[str, Any],
    path: Path,
    folder: Path,
    *,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write this rank's part of a checkpoint; all ranks call, with equal values except for the tensors.

    folder: the name that `new_folder` gave, beside `path`, equal on all ranks.
    group: a group of all ranks on CPUs; by default the one that training uses.
    Raises OSError on every rank if one of them cannot write.
    """
    import torch.distributed.checkpoint as dcp  # takes a second, which readers of one file need not wait
    from torch.distributed.checkpoint.api import CheckpointException

    from rfdit.checkpoint.part_writer import PartWriter

    tensors = {_name(keys): tensor for keys, tensor in _tensors(checkpoint).items()}
    writer = PartWriter(str(folder), save_distributed=True)
    first = dist.get_rank() == 0
    # The error of writing; when another rank has gone, there is an error of another type.
    failures: type[BaseException] = CheckpointException
    published = False
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group)
        failures = Exception  # no rank waits for another any more
        if first:
            _publish(checkpoint, folder, path, writer.parts)
        published = True
    except failures as error:
        raise OSError(f"{path} cannot be written: {_first_cause(error)}") from error
    finally:
        if first and not published:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(checkpoint: dict[str, Any], folder: Path, path: Path, parts: dict[str, Part]) -> None:
    """Write the rest durably, then point the checkpoint's name to the new folder."""
    rest = replaced(
        checkpoint, lambda keys, tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    )
    rest[PARTS] = summary(parts)
    write_atomically(folder / REST, lambda file: torch.save(rest, file), durable=True)
    link = path.with_name(f".{path.name}.{folder.name}")
    link.symlink_to(folder.name)
    make_way(path)
    link.replace(path)
    flush(path.parent)
    remove_shards(path)


def make_way(path: Path) -> None:
    """Move aside a folder that stands in place of a checkpoint's link, as in copies made by following links."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.stem}.{secrets.token_hex(3)}{SUFFIX}"))


def remove_shards(path: Path) -> None:
    """Remove the folders of a checkpoint's earlier states, except those that have a name of their own."""
    links = [link for link in (path, *path.parent.glob("*.ckpt")) if link.is_symlink()]
    named = {Path(os.readlink(link)).name for link in links}
    for folder in path.parent.glob(f"{path.stem}.*{SUFFIX}"):
        if folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)


def read_rest(path: Path) -> dict[str, Any]:
    """A sharded checkpoint with tensors on the meta device, which are not read.

    Raises ValueError if a part is missing or has another size than it was written with.
    """
    return _read_rest(path)[0]


def _read_rest(path: Path) -> tuple[dict[str, Any], dict[str, Part]]:
    """`read_rest`, and the records of the parts."""
    if record := changed_record(path / REST):
        raise ValueError(damaged(path, [f"{REST} ({record})"]))
    rest: dict[str, Any] = torch.load(path / REST, map_location="cpu", weights_only=True)
    return rest, read_parts(path, rest.pop(PARTS))


def read_sharded(
    path: Path, *, empty: Callable[[TensorKeys, Tensor], Tensor] | None = None
) -> dict[str, Any]:
    """The checkpoint that was given to `write_sharded`, on any number of ranks.

    empty: makes the tensor, perhaps a DTensor, that a tensor is read into, from its keys and its form on
        the meta device; all ranks call then. By default this process alone reads whole tensors to the CPU.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    rest, parts = _read_rest(path)
    verify_checksums(path, parts, together=empty is not None)
    make = empty or (lambda keys, form: torch.empty_like(form, device="cpu"))
    found = {keys: make(keys, form) for keys, form in _tensors(rest).items()}
    tensors = {_name(keys): tensor for keys, tensor in found.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is intended
        try:
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=empty is None)
        except CheckpointException as error:  # which is not an Exception
            raise ValueError(
                f"ckpt={path} cannot be read: {_first_cause(error)}; take another checkpoint"
            ) from error
    return replaced(rest, lambda keys, form: tensors[_name(keys)])


def _name(keys: TensorKeys) -> str:
    return "/".join(map(str, keys))


def _tensors(checkpoint: Mapping[str, Any]) -> dict[TensorKeys, Tensor]:
    """The tensors of the sharded sections by the keys that lead to them."""
    found: dict[TensorKeys, Tensor] = {}
    replaced(checkpoint, lambda keys, tensor: found.setdefault(keys, tensor))
    return found


def replaced(checkpoint: Mapping[str, Any], new: Callable[[TensorKeys, Tensor], Tensor]) -> dict[str, Any]:
    """The checkpoint with other tensors in the sharded sections; `new` makes one from its keys and the old one."""
    return {
        name: _rebuilt((name,), node, new) if name in SECTIONS else node for name, node in checkpoint.items()
    }


def _rebuilt(keys: TensorKeys, node: Any, new: Callable[[TensorKeys, Tensor], Tensor]) -> Any:
    if isinstance(node, Tensor):
        return new(keys, node)
    if isinstance(node, Mapping):
        return {key: _rebuilt((*keys, key), child, new) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(_rebuilt((*keys, i), child, new) for i, child in enumerate(node))
    return node


def _first_cause(error: BaseException) -> str:
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException):  # what went wrong, by rank
        error = next(iter(error.failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
