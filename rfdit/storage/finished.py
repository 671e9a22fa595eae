"""Records of finished files, by which a later start knows that a file is whole, or makes it anew.

A record is a small JSON file with the size and the BLAKE2b of another file, and a checksum of its own. It is
written after the file that it describes. A file that is empty, cut, changed, or without its record does
not count as finished.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rfdit.storage.atomic import write_atomically
from rfdit.storage.checked import DamagedFileError, read_checked_json, write_checked_json
from rfdit.storage.checksum import blake2b_at

KEY = "file"  # of the size and checksum in a record


def write_record(record: Path, file: Path, about: Mapping[str, Any]) -> None:
    """Record that a file is finished; without a file, that there is none to write. about: plain data about it."""
    write_checked_json(record, dict(about) | {KEY: _size(file) | _checksum(file)})


def read_record(record: Path, file: Path, *, checksum: bool = True) -> dict[str, Any] | None:
    """The data in the record of a file that is whole; None without a record, or if one of both has changed.

    checksum: compare the file's checksum, for which all of it is read; otherwise its size alone.
    """
    try:
        about = read_checked_json(record)
        expected = about.pop(KEY)
        found = _size(file) | (_checksum(file) if checksum else {})
        whole = isinstance(expected, dict) and all(
            expected.get(name) == value for name, value in found.items()
        )
    except (FileNotFoundError, NotADirectoryError, DamagedFileError, KeyError):
        return None
    return about if whole else None


def write_finished(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically and durably, then its record beside it, under the file's name followed by `.json`."""
    write_atomically(file, write, durable=True)
    write_record(_record(file), file, {})


def is_finished(file: Path) -> bool:
    """True if a file is what `write_finished` wrote; all of it is read."""
    return read_record(_record(file), file) is not None


def _record(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _size(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size if file.exists() else None}


def _checksum(file: Path) -> dict[str, Any]:
    return {"blake2b": blake2b_at(file)} if file.exists() else {}
