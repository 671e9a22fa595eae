"""Local copies of remote shards, kept while they are needed."""

import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from rich.filesize import decimal

from rfdit.data.shards import is_remote
from rfdit.data.tar.remote import UnreadableShardError, copy, reason
from rfdit.storage.checksum import blake2b_of
from rfdit.storage.disk_cache import CacheFullError, DiskCache, cache_root


class Spool:
    """Finds the local file of a shard, and copies it first if it is a URL or a `pipe:` command.

    The processes of a machine share the copies: one of them copies a shard while the others wait. Each compares
    a copy with its checksum when it opens it for the first time, and one that is damaged is made again.

    cache: folder above the spool's own; None is `cache_root()`.
    max_bytes: limit of the bytes of all copies; the least recently used are evicted.
    """

    def __init__(self, *, cache: str | None, max_bytes: int) -> None:
        root = cache_root() if cache is None else Path(cache).expanduser()
        self._copies = DiskCache(folder=str(root / "shards"), max_bytes=max_bytes)
        self._whole: set[str] = set()  # names of the copies that this process has compared, or made

    @property
    def folder(self) -> Path:
        """The folder of the copies."""
        return self._copies.folder

    @property
    def room(self) -> int:
        """Bytes of copies that are kept: max_bytes, or half of a small disk, as in `DiskCache`.

        Raises ValueError if the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ValueError(f"data.reader.cache: {self.folder} cannot be made: {error.strerror}") from error
        return min(self._copies.max_bytes, shutil.disk_usage(self.folder).total // 2)

    @property
    def limit(self) -> str:
        """The setting that limits the copies, in words."""
        setting = f"data.reader.spool_gb={self._copies.max_bytes / 1e9:g}"
        if self.room == self._copies.max_bytes:
            return setting
        return f"{setting} ({decimal(self.room)}, half of the disk of {self.folder})"

    def require_room(self, url: str, size: int | None) -> None:
        """Raises ValueError for a shard that alone is larger than the spool."""
        if size is not None and size > self.room:
            raise ValueError(f"{self.limit} is too small for {url}, which has {decimal(size)}; give more")

    def open(self, url: str, identity: list[Any], *, digest: str | None = None) -> BinaryIO:
        """The shard's local file, open for reading.

        identity: the shard's identity, see `remote.identity`; each state of a shard has a copy of its own.
        digest: the BLAKE2b that a copy must have, if it is known.
        Raises UnreadableShardError if the shard cannot be read, ValueError if there is no room for a copy.
        """
        if not is_remote(url):
            try:
                return open(url, "rb")
            except OSError as error:
                raise UnreadableShardError(f"{url}: {reason(error)}") from error
        name = _name(identity, digest)
        try:
            file = self._copies.open_or_put(
                name, lambda file: self._copy(url, identity, digest, file), check=name not in self._whole
            )
        except CacheFullError as error:
            raise ValueError(f"data.reader.spool_gb is too small for {url}: {error.strerror}") from error
        except OSError as error:
            raise ValueError(
                f"data.reader.cache: {url} cannot be copied to {self._copies.folder}: {error.strerror or error}"
            ) from error
        self._whole.add(name)
        return file

    def forget(self, identity: list[Any]) -> None:
        """Remove the copy that was made without a digest."""
        self._copies.remove(_name(identity, None))

    def _copy(self, url: str, identity: list[Any], digest: str | None, file: BinaryIO) -> None:
        """Copy a shard, from the local copy that was made to write its index if that is still there."""
        if digest is not None and (local := self._copies.open(_name(identity, None), check=False)):
            with local:
                if blake2b_of(local) == digest:
                    shutil.copyfileobj(local, file)
                    return
        copy(url, file, digest=digest)


def _name(identity: list[Any], digest: str | None) -> str:
    return json.dumps([identity, digest])
