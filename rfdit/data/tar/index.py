"""The index of each tar shard: built once for a selection of samples, and cached.

A cached index belongs to one state of its shard. Its name is a digest of the shard's identity (size,
modification time, the server's tag) and of the selection, so a changed shard is read again. Several
processes may index the same shards at once: each file is replaced atomically, and all write the same
content.
"""

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int
from rich.filesize import decimal

from rfdit.counted import counted
from rfdit.data.shards import is_remote
from rfdit.data.skips import SkipReason
from rfdit.data.tar.format import CompressedTarError
from rfdit.data.tar.remote import UnreadableShardError, identity, read_small, size_of
from rfdit.data.tar.selection import COLUMNS, Selection
from rfdit.data.tar.sidecar import (
    MAX_BYTES,
    Sidecar,
    StaleSidecarError,
    samples_when_written,
    sidecar_path,
)
from rfdit.data.tar.spool import Spool
from rfdit.processes.pools import DaemonPool, map_in_processes
from rfdit.progress import tracked
from rfdit.storage.checked import DamagedFileError, read_checked_arrays, write_checked_arrays
from rfdit.storage.checksum import json_digest

FORMAT = 8  # number of the cached files' format
LOOKUPS = 32  # in parallel, since servers and network disks answer slowly


@dataclass(frozen=True)
class ShardIndex:
    """The selected samples of one shard. Only counts and sizes are in memory; `file` has the arrays.

    identity: see `remote.identity`. size: the shard's size in bytes.
    digest: BLAKE2b of the shard, which a copy must have; None unless the index came from a sidecar.
    problem: the reason why the shard could not be read at all.
    """

    url: str
    identity: list[Any] = field(default_factory=list)
    samples: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    size: int = 0
    digest: str | None = None
    file: Path | None = None
    problem: str | None = None

    def forget(self) -> None:
        """Remove the cached file, so that the next start looks for the index again.

        One that another process has replaced since stays.
        """
        with contextlib.suppress(OSError, DamagedFileError):
            if self.file is not None and _load(self.url, self.identity, self.file).digest == self.digest:
                self.file.unlink()


@dataclass(frozen=True)
class _NotIndexed:
    """A shard that has to be read. problem: the fault of its sidecar, if it has one."""

    url: str
    identity: list[Any]
    problem: str | None = None


@dataclass(frozen=True)
class Indexer:
    """Finds the selected samples of shards, and caches their indexes in `folder`.

    sidecars: folder or URL of the sidecars of remote shards; None if they are beside the shards.
    """

    spool: Spool
    selection: Selection
    folder: Path
    sidecars: str | None = None

    def __call__(self, shards: Sequence[str]) -> list[ShardIndex]:
        """One index for each shard, in order; shards with neither a cached index nor a sidecar are read.

        Raises ValueError if a cache folder cannot be written to, or a shard is larger than the spool.
        """
        with DaemonPool(LOOKUPS, name="rfdit-index") as pool:
            lookups = pool.map(self._look_up, shards)
            known = list(tracked(lookups, "looking up", total=len(shards), unit="shards"))
        missing = [found for found in known if isinstance(found, _NotIndexed)]
        self._announce(missing, len(shards))
        read = map_in_processes(self._read, missing)
        new = iter(tracked(read, "indexing", total=len(missing), unit="shards"))
        return [next(new) if isinstance(found, _NotIndexed) else found for found in known]

    def array(self, shard: ShardIndex, name: str) -> Int[np.ndarray, "n columns"]:
        """An array of a shard's index; a cached file that is damaged or gone is made anew.

        name: `spans` or `links` of `TarScan`, or `image_sizes`, the (height, width) of each sample's image.
        Raises UnreadableShardError if that cannot be done, or the shard has changed.
        """
        if shard.file is None:
            return np.empty((0, COLUMNS[name]), np.int64)
        try:
            return read_checked_arrays(shard.file)[1][name]
        except (OSError, DamagedFileError):
            again = self._look_up(shard.url)
        if isinstance(again, _NotIndexed):
            again = self._read(again)
        if again.file is None or (again.identity, again.samples) != (shard.identity, shard.samples):
            raise UnreadableShardError(again.problem or f"{shard.url}: it has changed since it was indexed")
        return read_checked_arrays(again.file)[1][name]

    def _look_up(self, url: str) -> ShardIndex | _NotIndexed:
        """The shard's index, if it is known without reading the shard."""
        try:
            about = identity(url)
        except UnreadableShardError as error:
            return _unreadable(url, error)
        cached = self._cached(url, about)
        if not is_remote(url):
            return cached or _NotIndexed(url, about)
        if cached is not None:
            self.spool.require_room(url, cached.size)
            return cached
        self.spool.require_room(url, size_of(about))
        path = sidecar_path(url, self.sidecars, self.selection)
        try:
            data = None if path is None else read_small(path, limit=MAX_BYTES)
            if data is None:
                return _NotIndexed(url, about)
            sidecar = Sidecar.from_json(data)
            sidecar.check(about, self.selection)
        except UnreadableShardError as error:
            return _NotIndexed(url, about, str(error))
        except StaleSidecarError as error:
            return _NotIndexed(url, about, f"{path} {error}")
        self.spool.require_room(url, sidecar.size)
        return self._cache(
            url, about, sidecar.arrays, sidecar.skipped, size=sidecar.size, digest=sidecar.digest
        )

    def _announce(self, missing: Sequence[_NotIndexed], shards: int) -> None:
        """Say what will be copied before anything is read, and how to avoid that."""
        if wrong := [found.problem for found in missing if found.problem]:
            warnings.warn(
                f"data.shards: {len(wrong)} of {counted(shards, 'index', 'indexes')} cannot be used, "
                f"the first: {wrong[0]}; run rfdit index to write them again",
                stacklevel=4,
            )
        remote = [found for found in missing if is_remote(found.url)]
        if not remote:
            return
        sizes = [size_of(found.identity) for found in remote]
        unknown = sizes.count(None)
        amount = decimal(sum(size or 0 for size in sizes))
        if unknown:
            amount += f" and {unknown} of unknown size"
        print(
            f"copying {counted(len(remote), 'shard')} without an index for these filters and buckets, {amount}, to "
            f"{self.spool.folder} before any sample is read; run rfdit index to write indexes, with which a shard is "
            "copied only when it is due",
            flush=True,
        )

    def _read(self, shard: _NotIndexed) -> ShardIndex:
        """Read a shard through, and cache its index unless the shard cannot be read at all."""
        url = shard.url
        try:
            with self.spool.open(url, shard.identity) as file:
                size = os.fstat(file.fileno()).st_size
                expected = 0 if is_remote(url) else samples_when_written(url, size)
                arrays, skipped = self.selection(cast(BufferedIOBase, file), expected=expected)
        except CompressedTarError as error:
            raise ValueError(f"data.shards: {url} {error}") from None
        except (UnreadableShardError, OSError) as error:
            return _unreadable(url, error)
        return self._cache(url, shard.identity, arrays, skipped, size=size)

    def _path(self, identity: list[Any]) -> Path:
        digest = json_digest([FORMAT, identity, self.selection.settings], digits=32)
        return self.folder / digest[:2] / f"{digest}.npz"

    def _cached(self, url: str, identity: list[Any]) -> ShardIndex | None:
        try:
            return _load(url, identity, self._path(identity))
        except (OSError, DamagedFileError):
            return None

    def _cache(
        self,
        url: str,
        identity: list[Any],
        arrays: Mapping[str, np.ndarray],
        skipped: Mapping[str, int],
        *,
        size: int,
        digest: str | None = None,
    ) -> ShardIndex:
        about = {"samples": len(arrays["spans"]), "skipped": skipped, "size": size, "digest": digest}
        path = self._path(identity)
        try:
            write_checked_arrays(path, about, **arrays)
        except OSError as error:
            raise ValueError(
                f"data.reader.cache: the index of {url} cannot be written to {self.folder}: {error.strerror}"
            ) from error
        return _load(url, identity, path)


def _unreadable(url: str, error: Exception) -> ShardIndex:
    return ShardIndex(url, skipped={SkipReason.UNREADABLE_SHARD: 1}, problem=str(error))


def _load(url: str, identity: list[Any], file: Path) -> ShardIndex:
    return ShardIndex(url, identity, file=file, **read_checked_arrays(file)[0])
