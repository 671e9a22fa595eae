"""The index of a tar shard in a small file beside it, for readers that are elsewhere.

With it they know the shard's samples, and so the order of all, without fetching the shard. Its name is
the shard's and `.idx`; filters and image sizes make another index, whose name has a mark of theirs
before the `.idx`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from rfdit.data.remote import digest_of, identity, size_of
from rfdit.data.shards import is_remote
from rfdit.data.unfinished_files import write_locked
from rfdit.data.usable import Usable

FORMAT = 1
SUFFIX = ".idx"
LARGEST = 1 << 27  # bytes of an index: those of a shard of five million samples


class StaleSidecarError(Exception):
    """An index that is none, or not this shard's; the message says which and why."""


@dataclass(frozen=True)
class Sidecar:
    """What the index of a shard says.

    settings: those of the `Usable` that made it. arrays, skipped: what that found.
    size: bytes of the shard. digest: `digest_of` the shard.
    origin: the identity of the shard it was made from, its name hashed.
    """

    settings: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    skipped: Mapping[str, int]
    size: int
    digest: str
    origin: list[str]

    @classmethod
    def of(cls, file: BinaryIO, usable: Usable, identity: list[Any]) -> "Sidecar":
        """The index of an open shard; identity: of where it is, or was copied from."""
        arrays, skipped = usable(cast(Any, file))
        size = os.fstat(file.fileno()).st_size
        return cls(usable.settings, arrays, skipped, size, digest_of(file), hashed_origin(identity))

    def to_json(self) -> bytes:
        about = vars(self) | {"format": FORMAT} | {name: a.tolist() for name, a in self.arrays.items()}
        del about["arrays"]
        return json.dumps(about).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Sidecar":
        """Raises StaleSidecarError for what is no index that this version reads."""
        try:
            about = json.loads(data)
            if about.pop("format") != FORMAT:
                raise StaleSidecarError("is of another version of rfdit")
            names = {"spans", "image_sizes"} & about.keys()
            arrays = {name: np.array(about.pop(name), np.int64).reshape(-1, 2) for name in names}
            found = cls(arrays=arrays, **about)
            whole = found._is_sound()
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            whole = False
        if not whole:
            raise StaleSidecarError("is no index of a shard")
        return found

    def check(self, identity: list[Any], usable: Usable) -> None:
        """Raises StaleSidecarError if it is not of the shard of this identity, or made with other settings."""
        if self.settings != json.loads(json.dumps(usable.settings)):
            raise StaleSidecarError("was made with other filters")
        size = size_of(identity)
        if size is not None and size != self.size:
            raise StaleSidecarError(f"is of a file of {self.size:,} bytes, and the shard has {size:,}")
        here = hashed_origin(identity)
        if self.origin[:1] == here[:1] and self.origin != here:
            raise StaleSidecarError("is of another state of the shard, as the server says")

    def is_of(self, identity: list[Any]) -> bool:
        """Whether it was made from the shard of this identity, and not from a copy elsewhere."""
        return self.origin == hashed_origin(identity)

    def _is_sound(self) -> bool:
        spans, sizes = self.arrays["spans"], self.arrays.get("image_sizes")
        ordered = bool((np.diff(spans.reshape(-1)) >= 0).all()) and bool((np.diff(spans) > 0).all())
        inside = not len(spans) or (spans[0, 0] >= 0 and spans[-1, 1] <= self.size)
        measured = sizes is None or (len(sizes) == len(spans) and bool((sizes > 0).all()))
        complete = (sizes is not None) == self.settings["image_sizes"]
        plain = isinstance(self.digest, str) and isinstance(self.origin, list)
        counts = all(isinstance(n, int) for n in (self.size, *self.skipped.values()))
        return ordered and bool(inside) and measured and complete and plain and counts


def hashed_origin(identity: list[Any]) -> list[str]:
    """An identity whose name is hashed: a URL may hold a password."""
    return [hashlib.sha256(str(identity[0]).encode()).hexdigest()[:32], *map(str, identity[1:])]


def place_of(shard: str, folder: str | None, usable: Usable) -> str | None:
    """Where the index of a shard is looked for, or written to.

    folder: path or URL of a folder that holds the indexes; None if they are beside the shards.
    None for a `pipe:` command without a folder: it has no place.
    """
    ending = (f".{usable.mark}" if usable.mark else "") + SUFFIX
    if folder is not None:
        return f"{folder.rstrip('/')}/{name_of(shard)}{ending}"
    if shard.startswith("pipe:"):
        return None
    address, question, query = shard.partition("?") if is_remote(shard) else (shard, "", "")
    return address + ending + question + query


def name_of(shard: str) -> str:
    """The name of a shard's file; that of a command is a hash."""
    if shard.startswith("pipe:"):
        return f"pipe-{hashlib.sha256(shard.encode()).hexdigest()[:16]}"
    return os.path.basename(shard.partition("?")[0] if is_remote(shard) else shard)


def write_sidecar(shard: Path) -> None:
    """Writes the index of all samples of a shard on this machine beside it."""
    with shard.open("rb") as file:
        data = Sidecar.of(file, Usable(), identity(str(shard))).to_json()
    write_locked(shard.with_name(shard.name + SUFFIX), lambda out: out.write(data))
