"""Whether a shard is still the one that it was."""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rfdit.data.remote import UnreadableShardError, identity
from rfdit.data.shards import is_remote


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a shard was.

    marks: seen without reading it: a file's size and time of change, what a server says of it, the
        names, sizes and times of a folder's files. Of a `pipe:` command nothing is known.
    sha256: of a local file's bytes.
    """

    marks: list[Any]
    sha256: str | None

    @classmethod
    def of(cls, shard: str) -> "Fingerprint":
        """Reads a local file through; raises UnreadableShardError without the shard."""
        marks = _marks(shard)  # first: a change while it is read is then seen the next time
        return cls(marks=marks, sha256=_sha256(shard))

    def now(self, shard: str) -> "Fingerprint | None":
        """The shard's fingerprint if it is the same shard as then, else None.

        A file that was copied or touched has other marks and the same bytes, and is read to know it.
        Raises UnreadableShardError without the shard.
        """
        marks = _marks(shard)
        if marks == self.marks:
            return self
        same = self.sha256 is not None and self.sha256 == _sha256(shard)
        return Fingerprint(marks=marks, sha256=self.sha256) if same else None

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
