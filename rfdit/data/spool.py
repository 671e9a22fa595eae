"""Shards that are elsewhere, copied here while they are needed."""

import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from rich.filesize import decimal

from rfdit.data.cache_folder import cache_root
from rfdit.data.folder_cache import CacheFullError, FolderCache
from rfdit.data.remote import UnreadableShardError, copy, digest_of, reason
from rfdit.data.shards import is_remote


class Spool:
    """Finds the local file of a shard, fetching it first if it is a URL or a `pipe:` command.

    A fetched shard is a whole one: it is written aside and renamed. The processes of a machine share
    the copies, and one of them fetches while the others wait.

    cache: folder above the spool's own; None is `cache_root()`.
    max_bytes: of all copies; those used last are kept.
    """

    def __init__(self, *, cache: str | None, max_bytes: int) -> None:
        root = cache_root() if cache is None else Path(cache).expanduser()
        self._copies = FolderCache(folder=str(root / "shards"), max_bytes=max_bytes)

    @property
    def folder(self) -> Path:
        """Where the copies are."""
        return self._copies.folder

    @property
    def room(self) -> int:
        """Bytes of copies that are kept; of a small disk half, as `FolderCache` has it.

        Raises ValueError if the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ValueError(f"data.reader.cache: {self.folder} cannot be made: {error.strerror}") from error
        return min(self._copies.max_bytes, shutil.disk_usage(self.folder).total // 2)

    @property
    def limit(self) -> str:
        """The room, as the setting that decides it."""
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

        identity: what `remote.identity` said of the shard that is meant; a copy belongs to one.
        digest: what `remote.digest_of` must say of it when it is copied; None if that is not known.
        Raises UnreadableShardError if it cannot be had, ValueError if there is no room for a copy.
        """
        if not is_remote(url):
            try:
                return open(url, "rb")
            except OSError as error:
                raise UnreadableShardError(f"{url}: {reason(error)}") from error
        name = _name(identity, digest)
        try:
            for _ in range(3):  # another process may make room just now
                self._copies.get_or_put(
                    name, lambda file: self._copy(url, identity, digest, file), check=False
                )
                if (file := self._copies.open(name, check=False)) is not None:
                    return file
        except CacheFullError as error:
            raise ValueError(f"data.reader.spool_gb is too small for {url}: {error.strerror}") from error
        except OSError as error:
            raise ValueError(
                f"data.reader.cache: {url} cannot be copied to {self._copies.folder}: {error.strerror or error}"
            ) from error
        raise ValueError(f"data.reader.spool_gb is too small for the shards that are needed at once ({url})")

    def forget(self, identity: list[Any]) -> None:
        """Drops the copy that was made without a digest."""
        self._copies.remove(_name(identity, None))

    def _copy(self, url: str, identity: list[Any], digest: str | None, file: BinaryIO) -> None:
        """Copies a shard; from the copy that was made to write its index, if that is still here."""
        if digest is not None and (here := self._copies.open(_name(identity, None), check=False)):
            with here:
                if digest_of(here) == digest:
                    shutil.copyfileobj(here, file)
                    return
        copy(url, file, digest=digest)


def _name(identity: list[Any], digest: str | None) -> str:
    return json.dumps([identity, digest])
