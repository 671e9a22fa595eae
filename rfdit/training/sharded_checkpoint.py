"""Checkpoints of which every rank writes its part: safetensors files and plain data, no code.

A sharded checkpoint is a folder. `NAME.ckpt` is a symbolic link to it, so that one rename replaces the
old state by the new: a kill at any moment leaves one of them whole.
"""

import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rfdit.checksum import changed_record
from rfdit.durable import flush
from rfdit.training.checkpoint_parts import PARTS, Part, check_sums, damaged, summary, take_parts

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
    group: dist.ProcessGroup | None = None,
) -> None:
    """Writes this rank's part of a checkpoint; all ranks call, with equal values but for the tensors.

    folder: as of `new_folder`, beside `path`, equal on all ranks. group: of all ranks, on CPUs; by
    default the one that training uses. Raises OSError on every rank if one of them cannot write.
    """
    import torch.distributed.checkpoint as dcp  # takes a second, which who reads one file need not wait
    from torch.distributed.checkpoint.api import CheckpointException

    from rfdit.training.noting_writer import NotingWriter

    tensors = {_name(keys): tensor for keys, tensor in _tensors(checkpoint)}
    writer = NotingWriter(str(folder), save_distributed=True)
    first = dist.get_rank() == 0
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group)
        if first:
            _publish(checkpoint, folder, path, writer.parts)
    except (Exception, CheckpointException) as error:  # the latter is none of the former
        if first:
            shutil.rmtree(folder, ignore_errors=True)
        raise OSError(f"{path} cannot be written: {_first_cause(error)}") from error


def _publish(checkpoint: dict[str, Any], folder: Path, path: Path, parts: dict[str, Part]) -> None:
    """Writes the rest, makes all of it last, and lets the name mean the new folder."""
    rest = replaced(
        checkpoint, lambda keys, tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    )
    torch.save(rest | {PARTS: summary(parts)}, folder / REST)
    for place in (folder / REST, folder):  # the parts are flushed by the ranks that wrote them
        flush(place)
    link = path.with_name(f".{path.name}.{folder.name}")
    link.symlink_to(folder.name)
    make_way(path)
    link.replace(path)
    flush(path.parent)
    remove_shards(path)


def make_way(path: Path) -> None:
    """Moves a folder aside that stands where a checkpoint's name will: links were followed when it was copied."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.stem}.{secrets.token_hex(3)}{SUFFIX}"))


def remove_shards(path: Path) -> None:
    """Removes what lies beside a checkpoint of the states that its name meant before."""
    for folder in path.parent.glob(f"{path.stem}.*{SUFFIX}"):
        if folder.name != path.resolve().name:
            shutil.rmtree(folder, ignore_errors=True)


def read_rest(path: Path) -> dict[str, Any]:
    """A sharded checkpoint without its tensors, which are on the meta device, and are not checked.

    Raises ValueError if a part of it is missing or has another size than it was written with.
    """
    return _read_rest(path)[0]


def _read_rest(path: Path) -> tuple[dict[str, Any], dict[str, Part]]:
    """See `read_rest`; and the other files, by name."""
    if record := changed_record(path / REST):
        raise ValueError(damaged(path, [f"{REST} ({record})"]))
    rest: dict[str, Any] = torch.load(path / REST, map_location="cpu", weights_only=True)
    return rest, take_parts(path, rest)


def read_sharded(path: Path, *, empty: Callable[[Keys, Tensor], Tensor] | None = None) -> dict[str, Any]:
    """The checkpoint that was given to `write_sharded`, by however many ranks it was written.

    empty: for a tensor's keys and its form on the meta device, what it is read into, perhaps a DTensor;
        all ranks call then. By default whole tensors on the CPU, read by this process alone.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    rest, parts = _read_rest(path)
    check_sums(path, parts, together=empty is not None)
    make = empty or (lambda keys, form: torch.empty_like(form, device="cpu"))
    found = {keys: make(keys, form) for keys, form in _tensors(rest)}
    tensors = {_name(keys): tensor for keys, tensor in found.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
        try:
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=empty is None)
        except CheckpointException as error:  # none of Exception
            raise ValueError(
                f"ckpt={path} cannot be read: {_first_cause(error)}; take another checkpoint"
            ) from error
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
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException):  # what went wrong, by rank
        error = next(iter(error.failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
