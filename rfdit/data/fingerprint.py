"""Whether a shard is still the one that it was."""

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from rfdit.data.remote import UnreadableShardError, identity
from rfdit.data.shards import is_remote


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a shard was.

    marks: seen without reading it: a file's size and time of change, what a server says of it, the
        names, sizes and times of a folder's files. Of a `pipe:` command nothing is known.
    sha256: of a file's bytes; of a remote one's if a copy of it was read.
    """

    marks: list[Any]
    sha256: str | None

    @classmethod
    def of(cls, shard: str) -> "Fingerprint":
        """Reads a local file through; raises UnreadableShardError without the shard."""
        marks = _marks(shard)  # first: a change while it is read is then seen the next time
        return cls(marks=marks, sha256=_sha256(shard))

    def now(self, shard: str) -> "Fingerprint":
        """The shard's fingerprint, for which a local file is read only if its marks are others.

        Raises UnreadableShardError without the shard.
        """
        return self if _marks(shard) == self.marks else Fingerprint.of(shard)

    def with_bytes(self, copy: BinaryIO) -> "Fingerprint":
        """With what is known from a copy of the whole shard."""
        copy.seek(0)
        return replace(self, sha256=hashlib.file_digest(cast(Any, copy), "sha256").hexdigest())

    def same_shard(self, other: "Fingerprint") -> bool | None:
        """Whether the bytes are the same, or else the marks; None if only the marks differ.

        A file that was copied, touched or served by another machine has other marks and the same bytes.
        """
        if self.marks == other.marks:
            return True
        if self.sha256 is None or other.sha256 is None:
            return None
        return self.sha256 == other.sha256

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _marks(shard: str) -> list[Any]:
    if not is_remote(shard) and os.path.isdir(shard):
        return [_listing(Path(shard))]
    return identity(shard)[1:]


def _sha256(shard: str) -> str | None:
    if is_remote(shard) or not os.path.isfile(shard):
        return None
    try:
        with open(shard, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableShardError(f"{shard}: {error.strerror}") from error


def _listing(root: Path) -> str:
    """A digest of the names, sizes and times of change of all files below a folder."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            status = path.lstat()
            digest.update(os.fsencode(path.relative_to(root)))
            digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
