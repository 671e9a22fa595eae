"""What is known of the files of a sharded checkpoint: each has a note beside it, by the rank that wrote it.

So rank 0 writes as much about 1,024 parts as about one: how many they are, and one checksum of the notes.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rfdit.checksum import crc32_of

SUFFIX = ".json"  # of a part's note, after the name of the part
PARTS = "parts"  # in rank 0's file: what `summary` says
SIZES, SUMS = (
    "bytes_of_parts",
    "crc32_of_parts",
)  # there in older checkpoints, by file; the oldest have no sums


@dataclass(frozen=True)
class Part:
    """bytes: its size. crc32: of its bytes; None where an older version wrote it."""

    bytes: int
    crc32: int | None


def note(file: Path) -> Part:
    """Writes what a part holds beside it, whole or not at all, and so that it outlasts a loss of power."""
    part = Part(bytes=file.stat().st_size, crc32=crc32_of(file))
    target = file.with_name(file.name + SUFFIX)
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("w") as opened:
        opened.write(_text(part))
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(target)
    return part


def _text(part: Part) -> str:
    return json.dumps(asdict(part))


def summary(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Of any number of parts by name, and of always the same size."""
    crc = 0
    for name, part in sorted(parts.items()):
        crc = zlib.crc32(f"{name} {_text(part)}\n".encode(), crc)
    return {"files": len(parts), "crc32": f"{crc:08x}"}


def take_parts(folder: Path, rest: dict[str, Any]) -> dict[str, Part]:
    """The parts of a checkpoint by name; takes what is said of them out of what rank 0 wrote.

    Raises ValueError if one is missing or has another size than it was written with.
    """
    if PARTS in rest:
        parts = _noted(folder, rest.pop(PARTS))
    else:
        sizes, sums = rest.pop(SIZES), rest.pop(SUMS, {})
        parts = {name: Part(bytes=size, crc32=sums.get(name)) for name, size in sizes.items()}
    for name, part in parts.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found is None:
            raise ValueError(_not_whole(folder, f"{name} is missing"))
        if found != part.bytes:
            raise ValueError(_not_whole(folder, f"{name} has {found} bytes instead of {part.bytes}"))
    return parts


def _noted(folder: Path, said: dict[str, Any]) -> dict[str, Part]:
    notes = sorted(folder.glob(f"*.safetensors{SUFFIX}"))
    if len(notes) != said["files"]:
        raise ValueError(_not_whole(folder, f"{len(notes)} of {said['files']} parts have a {SUFFIX} file"))
    try:
        parts = {file.name.removesuffix(SUFFIX): Part(**json.loads(file.read_text())) for file in notes}
    except (ValueError, TypeError):  # no text, no JSON, other names
        parts = {}
    if summary(parts) != said:
        raise ValueError(damaged(folder, [f"a {SUFFIX} file of a part"]))
    return parts


def check_sums(folder: Path, parts: Mapping[str, Part], *, together: bool) -> None:
    """Raises ValueError for a part with another checksum; of ranks together, each reads its share."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    sums = {name: part.crc32 for name, part in parts.items() if part.crc32 is not None}
    changed = [name for name in sorted(sums)[rank::ranks] if _sum_of(folder / name) != sums[name]]
    if together:
        of_ranks: list[list[str]] = [[]] * ranks
        dist.all_gather_object(of_ranks, changed)
        changed = [name for names in of_ranks for name in names]
    if changed:
        raise ValueError(damaged(folder, changed))


def _sum_of(file: Path) -> int | None:
    """None for a file that cannot be read: the other ranks wait to hear of it."""
    try:
        return crc32_of(file)
    except OSError:
        return None


def _not_whole(folder: Path, what: str) -> str:
    return f"ckpt={folder} is not whole: {what}; take another checkpoint"


def damaged(folder: Path, files: Iterable[str]) -> str:
    """The sentence about files that have changed."""
    return (
        f"ckpt={folder} is damaged: {', '.join(files)} in it is not what was written; take another checkpoint"
    )
