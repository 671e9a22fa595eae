"""The kinds of files that rfdit reads, and what a read has shown."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

Forge = Callable[[Path, Random], None]


@dataclass(frozen=True)
class Kind:
    """Files of one kind, in an empty working directory.

    make: writes them, whole, with all that reading them needs. read: what comes of them, as plain data.
    targets: patterns of those that are damaged.
    guarded: rfdit wrote them and knows whether they are whole, so that another result in silence is a fault.
        What is in other files is not known to anybody, so only tracebacks, hangs and memory count there.
    forge: by pattern, writes odd contents under the right checksum, as a stranger may; their results are not known.
    weight: its share of the corruptions.
    logs: patterns of files that grow by lines, so that their beginning was whole once.
    blind: damages after which nobody can notice in this format that samples are gone.
    open: patterns of files that anybody may write, so that a whole other file is taken for theirs.
    foreign: others' code reads them, with errors of its own.
    alias: another name by which a sentence may call the files, that of a link to them.
    """

    name: str
    make: Callable[[], None]
    read: Callable[[], Any]
    targets: Sequence[str]
    guarded: bool = True
    forge: Mapping[str, Forge] = field(default_factory=dict)
    weight: float = 1.0
    logs: Sequence[str] = ()
    blind: Sequence[str] = ()
    open: Sequence[str] = ()
    foreign: bool = False
    alias: str = ""

    def files(self) -> list[Path]:
        """The files to damage; a link among them counts as what it points to."""
        found = {path for pattern in self.targets for path in Path().glob(pattern) if not path.is_dir()}
        return sorted(found)


@dataclass(frozen=True)
class Samples:
    """A stream's samples by key, and the counts of those that it left out by reason."""

    values: Mapping[str, Any]
    skipped: Mapping[str, int]


def run(name: str, *arguments: str) -> None:
    """A command in this process, as from a shell in the working directory."""
    sys.argv = [f"rfdit {name}", *arguments]
    import_module(f"rfdit.commands.{name}").main()


def digest(value: Any) -> Any:
    """Plain data in which tensors, arrays and bytes are digests of all their bits."""
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().view(-1)
        data = value.view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return f"{value.dtype} {hashlib.sha256(data).hexdigest()[:16]}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()[:16]
    if isinstance(value, Mapping):
        return {str(key): digest(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [digest(child) for child in value]
    return value if isinstance(value, int | str | bool | None) else repr(value)


def digest_files(*patterns: str, without: Iterable[str] = ()) -> dict[str, str]:
    """The digests of files, hidden ones included, by path. without: names that are left out."""
    names = set(without)
    found = {path for pattern in patterns for path in Path().glob(pattern) if path.is_file()}
    return {str(path): digest(path.read_bytes()) for path in sorted(found) if path.name not in names}
