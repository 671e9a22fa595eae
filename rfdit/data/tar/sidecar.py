"""The index of a tar shard in a small JSON file beside it, for readers elsewhere.

With it a reader knows the shard's samples, and thus the order of all samples, without fetching the shard.
Its name is the shard's name followed by `.idx`; a selection with filters or image sizes has an index of its
own, with the selection's digest before the `.idx`.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from jaxtyping import Int

from rfdit.data.shards import is_remote
from rfdit.data.source import IndexReport
from rfdit.data.tar.format import CompressedTarError
from rfdit.data.tar.remote import UnreadableShardError, identity, size_of
from rfdit.data.tar.selection import COLUMNS, Selection
from rfdit.data.tar.spool import Spool
from rfdit.processes.pools import map_in_processes
from rfdit.progress import tracked
from rfdit.storage.atomic import remove_abandoned, write_bytes
from rfdit.storage.checked import checked_json, parse_checked_json, whole_numbers
from rfdit.storage.checksum import blake2b_of

FORMAT = 4
SUFFIX = ".idx"
MAX_BYTES = 1 << 27  # the index of a shard of five million samples


class StaleSidecarError(Exception):
    """A file that is not an index, or not this shard's; the message is a predicate that says which."""


@dataclass(frozen=True)
class Sidecar:
    """The index of a shard.

    settings: settings of the `Selection` that made it. arrays, skipped: its result.
    size: the shard's size in bytes. digest: its BLAKE2b.
    origin: the identity of the shard it was made from, its name hashed.
    """

    settings: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    skipped: Mapping[str, int]
    size: int
    digest: str
    origin: list[str]

    @classmethod
    def of(cls, file: BinaryIO, selection: Selection, identity: list[Any]) -> "Sidecar":
        """The index of an open shard; identity: of the shard, where it is or was copied from."""
        arrays, skipped = selection(cast(Any, file))
        size = os.fstat(file.fileno()).st_size
        return cls(selection.settings, arrays, skipped, size, blake2b_of(file), _hashed(identity))

    def to_json(self) -> bytes:
        about = vars(self) | {"format": FORMAT} | {name: a.tolist() for name, a in self.arrays.items()}
        del about["arrays"]
        return checked_json(about, indent=None)

    @classmethod
    def from_json(cls, data: bytes) -> "Sidecar":
        """Raises StaleSidecarError for a file that is not an index of this format."""
        try:
            about = parse_checked_json(data, place="")
            if about.pop("format") != FORMAT:
                raise StaleSidecarError("was written by another version of rfdit")
            arrays = {n: _integers(about.pop(n), columns) for n, columns in COLUMNS.items() if n in about}
            sidecar = cls(arrays=arrays, **about)
            sound = sidecar._is_sound()
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            sound = False
        if not sound:
            raise StaleSidecarError("is not an index of a shard")
        return sidecar

    def check(self, identity: list[Any], selection: Selection) -> None:
        """Raises StaleSidecarError if it belongs to another shard, another state of it, or another selection."""
        if self.settings != json.loads(json.dumps(selection.settings)):
            raise StaleSidecarError("was made with other filters")
        size = size_of(identity)
        if size is not None and size != self.size:
            raise StaleSidecarError(f"describes a file of {self.size:,} bytes, and the shard has {size:,}")
        here = _hashed(identity)
        if self.origin[:1] == here[:1] and self.origin != here:
            raise StaleSidecarError("describes another state of the shard, as the server says")

    def is_of(self, identity: list[Any]) -> bool:
        """True if it was made from the shard of this identity itself, and not from a copy elsewhere."""
        return self.origin == _hashed(identity)

    def _is_sound(self) -> bool:
        spans, links = self.arrays["spans"], self.arrays["links"]
        sizes = self.arrays.get("image_sizes")
        ordered = bool((np.diff(spans.reshape(-1)) >= 0).all()) and bool((np.diff(spans) > 0).all())
        inside = not len(spans) or (spans[0, 0] >= 0 and spans[-1, 1] <= self.size)
        measured = sizes is None or (len(sizes) == len(spans) and bool((sizes > 0).all()))
        complete = (sizes is not None) == self.settings["image_sizes"]
        plain = isinstance(self.digest, str) and isinstance(self.origin, list)
        counts = whole_numbers((self.size, *self.skipped.values()))
        return (
            ordered and bool(inside) and self._are_links(links) and measured and complete and plain and counts
        )

    def _are_links(self, links: Int[np.ndarray, "m 3"]) -> bool:
        """True for contents inside of the shard, in the order of the samples."""
        samples, starts, sizes = links.T
        known = (samples >= 0) & (samples < len(self.arrays["spans"])) & (np.diff(samples, prepend=0) >= 0)
        inside = (starts >= 0) & (sizes >= 0) & (starts <= self.size) & (sizes <= self.size - starts)
        return bool((known & inside).all())


def _integers(rows: Any, columns: int) -> Int[np.ndarray, "n columns"]:
    """Rows of integers; raises ValueError for fractions, bools and anything else."""
    found = np.array(rows)
    if found.size and found.dtype != np.int64:
        raise ValueError(f"an array of {found.dtype}")
    return found.astype(np.int64).reshape(-1, columns)


def _hashed(identity: list[Any]) -> list[str]:
    """An identity with its name hashed: a URL may hold a password."""
    return [hashlib.sha256(str(identity[0]).encode()).hexdigest()[:32], *map(str, identity[1:])]


def sidecar_path(shard: str, folder: str | None, selection: Selection) -> str | None:
    """The path or URL of a shard's index; None for a `pipe:` command without a folder.

    folder: path or URL of a folder of indexes; None if they are beside the shards.
    """
    ending = (f".{selection.digest}" if selection.digest else "") + SUFFIX
    if folder is not None:
        return f"{folder.rstrip('/')}/{_file_name(shard)}{ending}"
    if shard.startswith("pipe:"):
        return None
    address, question, query = shard.partition("?") if is_remote(shard) else (shard, "", "")
    return address + ending + question + query


def _file_name(shard: str) -> str:
    """The name of a shard's file; for a command, a hash."""
    if shard.startswith("pipe:"):
        return f"pipe-{hashlib.sha256(shard.encode()).hexdigest()[:16]}"
    return os.path.basename(shard.partition("?")[0] if is_remote(shard) else shard)


def write_sidecar(shard: Path) -> None:
    """Write the index of all samples of a local shard beside it."""
    with shard.open("rb") as file:
        data = Sidecar.of(file, Selection(), identity(str(shard))).to_json()
    write_bytes(shard.with_name(shard.name + SUFFIX), data, durable=True)


def samples_when_written(shard: str, size: int) -> int:
    """The samples of a local shard as the index beside it knows them; 0 without one, or for one of another size."""
    try:
        sidecar = Sidecar.from_json(Path(shard + SUFFIX).read_bytes())
    except (OSError, StaleSidecarError):
        return 0
    return len(sidecar.arrays["spans"]) if sidecar.size == size else 0


def write_sidecars(
    shards: Sequence[str], *, spool: Spool, selection: Selection, out: str | None = None
) -> IndexReport:
    """Write the indexes that are missing or stale; returns what all of them hold.

    out: a local folder; None writes beside the shards. Indexes of commands, whose output may have
    changed unseen, are always written.
    Raises ValueError if `out` cannot take the indexes.
    """
    if out is None and (remote := [shard for shard in shards if is_remote(shard)]):
        raise ValueError(
            f"out is not set; give a folder, since indexes cannot be written beside {remote[0]}, and upload it or "
            "give it to runs as data.reader.index"
        )
    if out is not None and is_remote(out):
        raise ValueError(f"out={out} is not a folder of this machine; write indexes to one and upload it")
    paths = Counter(sidecar_path(shard, out, selection) for shard in shards)
    path, n = paths.most_common(1)[0]
    if n > 1:
        raise ValueError(f"out={out}: {n} shards would have the index {path}; index each folder by itself")
    for folder in {Path(path).parent for path in paths if path is not None}:
        remove_abandoned(folder, names=f"*{SUFFIX}")
    written = map_in_processes(_SidecarWriter(spool, selection, out), shards)
    return sum(tracked(written, "indexing", total=len(shards), unit="shards"), start=IndexReport())


@dataclass(frozen=True)
class _SidecarWriter:
    """Writes the index of one shard."""

    spool: Spool
    selection: Selection
    out: str | None

    def __call__(self, shard: str) -> IndexReport:
        try:
            about = identity(shard)
            path = sidecar_path(shard, self.out, self.selection)
            assert path is not None, "commands were refused without out"
            size = size_of(about)
            if size is None:
                self.spool.forget(about)
            elif (current := self._current(Path(path), about)) is not None:
                return _report(current)
            self.spool.require_room(shard, size)
            with self.spool.open(shard, about) as file:
                sidecar = Sidecar.of(file, self.selection, about)
        except UnreadableShardError as error:
            return IndexReport(problems=(str(error),))
        except CompressedTarError as error:
            return IndexReport(problems=(f"{shard} {error}",))
        try:
            write_bytes(Path(path), sidecar.to_json(), durable=True)
        except OSError as error:
            raise ValueError(
                f"out={self.out or 'null'}: {path} cannot be written: {error.strerror}"
            ) from error
        return _report(sidecar)

    def _current(self, path: Path, about: list[Any]) -> Sidecar | None:
        """The index of exactly this state of the shard, if there is one."""
        try:
            sidecar = Sidecar.from_json(path.read_bytes())
            sidecar.check(about, self.selection)
        except (OSError, StaleSidecarError):
            return None
        return sidecar if sidecar.is_of(about) else None


def _report(sidecar: Sidecar) -> IndexReport:
    return IndexReport(len(sidecar.arrays["spans"]), sidecar.skipped)
