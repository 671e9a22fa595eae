"""The parts of a sharded checkpoint: safetensors files, each with a record beside it.

The rank that writes a part also writes the record, with the part's size and checksum. Rank 0 thus writes as
much for 1,024 parts as for one: their number, and one checksum of all records.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rfdit.storage.atomic import write_text
from rfdit.storage.checksum import crc32_of
from rfdit.storage.untrusted import read_json, unreadable

SUFFIX = ".json"  # suffix of a record, after the name of its part
PARTS = "parts"  # the key in rank 0's file under which `summary` stands


@dataclass(frozen=True)
class Part:
    """Size in bytes and checksum of a part."""

    bytes: int
    crc32: int


def record_part(file: Path) -> Part:
    """Write the record of a part beside it."""
    part = Part(bytes=file.stat().st_size, crc32=crc32_of(file))
    write_text(file.with_name(file.name + SUFFIX), json.dumps(asdict(part)), durable=True)
    return part


def summary(parts: Mapping[str, Part]) -> dict[str, Any]:
    """The number of parts and a checksum of their records by name; its size does not grow with the parts."""
    crc = 0
    for name, part in sorted(parts.items()):
        crc = zlib.crc32(f"{name} {json.dumps(asdict(part))}\n".encode(), crc)
    return {"files": len(parts), "crc32": f"{crc:08x}"}


def read_parts(folder: Path, expected: dict[str, Any]) -> dict[str, Part]:
    """The records of a checkpoint's parts by file.

    expected: the `summary` that rank 0 wrote.
    Raises ValueError if a record or a part is missing, or differs in size from what was written.
    """
    records = sorted(folder.glob(f"*.safetensors{SUFFIX}"))
    if len(records) != expected["files"]:
        raise ValueError(
            _incomplete(folder, f"{len(records)} of {expected['files']} parts have a {SUFFIX} file")
        )
    try:
        parts = {file.name.removesuffix(SUFFIX): Part(**read_json(file)) for file in records}
    except (ValueError, TypeError):  # not text, not JSON, or other names in it
        parts = {}
    if summary(parts) != expected:
        raise ValueError(damaged(folder, [f"a {SUFFIX} file of a part"]))
    for name, part in parts.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size is None:
            raise ValueError(_incomplete(folder, f"{name} is missing"))
        if size != part.bytes:
            raise ValueError(_incomplete(folder, f"{name} has {size} bytes instead of {part.bytes}"))
    return parts


def verify_checksums(folder: Path, parts: Mapping[str, Part], *, together: bool) -> None:
    """Raises ValueError for a part that has changed, and OSError for one that cannot be read.

    together: all ranks call, and each reads its share of the parts.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    found = {name: _has_changed(folder / name, parts[name]) for name in sorted(parts)[rank::ranks]}
    if together:
        gathered: list[dict[str, bool | OSError]] = [{}] * ranks
        dist.all_gather_object(gathered, found)
        found = {name: answer for each in gathered for name, answer in each.items()}
    for name, answer in found.items():
        if isinstance(answer, OSError):
            raise unreadable(f"ckpt={folder / name}", answer)
    if changed := [name for name, answer in found.items() if answer]:
        raise ValueError(damaged(folder, changed))


def _has_changed(file: Path, part: Part) -> bool | OSError:
    try:
        return crc32_of(file) != part.crc32
    except OSError as error:  # not raised here: the other ranks wait for this one's answer
        return error


def _incomplete(folder: Path, reason: str) -> str:
    return f"ckpt={folder} is incomplete: {reason}; take another checkpoint"


def damaged(folder: Path, files: Iterable[str]) -> str:
    """The error message about files of a checkpoint that have changed."""
    return (
        f"ckpt={folder} is damaged: {', '.join(files)} in it is not what was written; take another checkpoint"
    )
