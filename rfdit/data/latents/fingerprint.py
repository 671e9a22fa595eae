"""Fingerprints of shards, to notice that a shard has changed since it was encoded."""

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from rfdit.data.shards import is_remote
from rfdit.data.tar.remote import UnreadableShardError, identity
from rfdit.storage.checksum import sha256_of


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The state of a shard at one time.

    marks: its state as known without reading it: size and modification time of a file, fields that a server
        reports, or names, sizes and times of a folder's files; nothing for a `pipe:` command.
    sha256: of the bytes of a local file, or of a copy of a remote shard.
    """

    marks: list[Any]
    sha256: str | None

    @classmethod
    def of(cls, shard: str) -> "Fingerprint":
        """The fingerprint of a shard; reads a local file. Raises UnreadableShardError if the shard is missing."""
        marks = _marks(shard)  # before reading: a change meanwhile is noticed the next time
        return cls(marks=marks, sha256=_sha256(shard))

    def now(self, shard: str) -> "Fingerprint":
        """The shard's fingerprint now; a local file is read only if its marks have changed.

        Raises UnreadableShardError if the shard is missing.
        """
        return self if _marks(shard) == self.marks else Fingerprint.of(shard)

    def with_bytes(self, copy: BinaryIO) -> "Fingerprint":
        """This fingerprint with the SHA-256 of a copy of the shard."""
        copy.seek(0)
        return replace(self, sha256=hashlib.file_digest(cast(Any, copy), "sha256").hexdigest())

    def is_same_shard(self, other: "Fingerprint") -> bool | None:
        """True for the same marks or the same bytes, False for other bytes, None if that is unknown.

        A file that was copied, touched or served by another machine has other marks and the same bytes.
        """
        if self.marks == other.marks:
            return True
        if self.sha256 is None or other.sha256 is None:
            return None
        return self.sha256 == other.sha256

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def _marks(shard: str) -> list[Any]:
    if not is_remote(shard) and os.path.isdir(shard):
        return [_listing(Path(shard))]
    return identity(shard)[1:]


def _sha256(shard: str) -> str | None:
    if is_remote(shard) or not os.path.isfile(shard):
        return None
    try:
        return sha256_of(shard)
    except OSError as error:
        raise UnreadableShardError(f"{shard}: {error.strerror}") from error


def _listing(root: Path) -> str:
    """Digest of the names, sizes and modification times of all files below a folder."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            status = path.lstat()
            digest.update(os.fsencode(path.relative_to(root)))
            digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
