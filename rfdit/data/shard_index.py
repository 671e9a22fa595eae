"""The usable samples of each tar shard: found once, filtered once, remembered."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Int
from rich.filesize import decimal

from rfdit.data.cache_folder import write_atomically
from rfdit.data.daemon_pool import DaemonPool
from rfdit.data.remote import UnreadableShardError, identity, read_small, size_of
from rfdit.data.shards import is_remote
from rfdit.data.sidecar import LARGEST, Sidecar, StaleSidecarError, place_of
from rfdit.data.skips import SkipReason
from rfdit.data.slow_progress import slow_progress
from rfdit.data.spool import Spool
from rfdit.data.tar_index import CompressedTarError
from rfdit.data.usable import Usable

FORMAT = 3  # of the remembered indices
DOUBTED = ".doubted"  # beside a remembered index: the digest that the shard turned out not to have
MANY = 32  # shards, from which on several processes pay
QUESTIONS = 32  # asked at once
T, R = TypeVar("T"), TypeVar("R")


@dataclass(frozen=True)
class IndexedShard:
    """What is known of one shard. `file` holds the spans; only sizes and counts stay in memory.

    identity: as `remote.identity` gave it. size: of the shard in bytes.
    digest: what `remote.digest_of` must say of a copy, if its index came from elsewhere.
    problem: why it could not be read at all, if so.
    """

    url: str
    identity: list[Any] = field(default_factory=list)
    samples: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    size: int = 0
    digest: str | None = None
    file: Path | None = None
    problem: str | None = None

    def spans(self) -> Int[np.ndarray, "n 2"]:
        """First and last byte (exclusive) of each usable sample."""
        return self._array("spans")

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        """(height, width) of each usable sample's image."""
        return self._array("image_sizes")

    def doubt(self) -> None:
        """Makes the next start look for the index anew; who uses this one now can go on."""
        if self.file is not None and self.digest is not None:
            with contextlib.suppress(OSError):  # then it will be noticed once more
                self.file.with_suffix(DOUBTED).write_text(self.digest)

    def _array(self, name: str) -> Int[np.ndarray, "n 2"]:
        if self.file is None:
            return np.empty((0, 2), np.int64)
        with np.load(self.file) as arrays:
            return arrays[name]


@dataclass(frozen=True)
class _Unknown:
    """A shard whose samples have yet to be looked for. problem: what is wrong with the index beside it."""

    url: str
    identity: list[Any]
    problem: str | None = None


@dataclass(frozen=True)
class Indexer:
    """Finds the usable samples of shards, and remembers them in `folder`, named after all they depend on.

    sidecars: where indexes of remote shards are, if not beside them.
    """

    spool: Spool
    usable: Usable
    folder: Path
    sidecars: str | None = None

    def __call__(self, shards: Sequence[str]) -> list[IndexedShard]:
        """One for each shard, in order; those that are not remembered, and have no sidecar, are read through.

        Raises ValueError if the folder, or the spool's, cannot be written to or a shard does not fit.
        """
        with DaemonPool(QUESTIONS, name="rfdit-index") as pool:  # servers and network disks answer slowly
            looked = pool.map(self._look_up, shards)
            known = list(slow_progress(looked, "looking up shards", total=len(shards)))
        missing = [found for found in known if isinstance(found, _Unknown)]
        self._tell(missing, len(shards))
        new = iter(map_many(self._read, missing, "indexing shards"))
        return [next(new) if isinstance(found, _Unknown) else found for found in known]

    def _look_up(self, url: str) -> IndexedShard | _Unknown:
        """What is known without reading the shard."""
        try:
            about = identity(url)
        except UnreadableShardError as error:
            return _unreadable(url, error)
        known = self._remembered(url, about)
        if not is_remote(url):
            return known or _Unknown(url, about)
        if known is not None:
            self.spool.require_room(url, known.size)
            return known
        self.spool.require_room(url, size_of(about))
        place = place_of(url, self.sidecars, self.usable)
        try:
            data = None if place is None else read_small(place, limit=LARGEST)
            if data is None:
                return _Unknown(url, about)
            sidecar = Sidecar.from_json(data)
            sidecar.check(about, self.usable)
        except UnreadableShardError as error:
            return _Unknown(url, about, str(error))
        except StaleSidecarError as error:
            return _Unknown(url, about, f"{place} {error}")
        self.spool.require_room(url, sidecar.size)
        return self._remember(
            url, about, sidecar.arrays, sidecar.skipped, size=sidecar.size, digest=sidecar.digest
        )

    def _remembered(self, url: str, identity: list[Any]) -> IndexedShard | None:
        place = self._place(identity)
        try:
            found, doubted = _load(url, identity, place), place.with_suffix(DOUBTED)
            return None if doubted.exists() and doubted.read_text() == found.digest else found
        except (OSError, ValueError, KeyError):  # not there, or half a disk's worth of it
            return None

    def _tell(self, missing: Sequence[_Unknown], shards: int) -> None:
        """Says what will be copied before anything is read, and how to do without."""
        if wrong := [found.problem for found in missing if found.problem]:
            warnings.warn(
                f"data.shards: {len(wrong)} of {shards} indexes cannot be used, the first: {wrong[0]}; "
                "python -m rfdit.data.index writes them anew",
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
            f"{len(remote)} of {shards} shards have no index for these filters and buckets and are copied to "
            f"{self.spool.folder} before any sample is read, {amount}; python -m rfdit.data.index writes "
            "indexes, with which each is copied when it is due",
            flush=True,
        )

    def _place(self, identity: list[Any]) -> Path:
        about = [FORMAT, identity, self.usable.settings]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / digest[:2] / f"{digest}.npz"

    def _read(self, shard: _Unknown) -> IndexedShard:
        """Reads a shard through, and remembers what it found unless the shard cannot be read at all."""
        url = shard.url
        try:
            with self.spool.open(url, shard.identity) as file:
                arrays, skipped = self.usable(cast(BufferedIOBase, file))
                size = os.fstat(file.fileno()).st_size
        except UnreadableShardError as error:
            return _unreadable(url, error)
        except CompressedTarError as error:
            raise ValueError(f"data.shards: {url} {error}") from None
        except OSError as error:
            return _unreadable(url, error)
        return self._remember(url, shard.identity, arrays, skipped, size=size)

    def _remember(
        self,
        url: str,
        identity: list[Any],
        arrays: Mapping[str, np.ndarray],
        skipped: Mapping[str, int],
        *,
        size: int,
        digest: str | None = None,
    ) -> IndexedShard:
        about = {"samples": len(arrays["spans"]), "skipped": skipped, "size": size, "digest": digest}
        encoded = np.frombuffer(json.dumps(about).encode(), np.uint8)
        place = self._place(identity)
        try:
            write_atomically(place, lambda out: np.savez(out, allow_pickle=False, about=encoded, **arrays))
            place.with_suffix(DOUBTED).unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"data.reader.cache: the index of {url} cannot be written to {self.folder}: {error.strerror}"
            ) from error
        return _load(url, identity, place)


def map_many(call: Callable[[T], R], items: Sequence[T], what: str) -> Iterator[R]:
    """The results in order, made by several processes if there are many items."""
    if len(items) < MANY:
        yield from slow_progress(map(call, items), what, total=len(items))
        return
    with _processes() as pool:
        # Ctrl-C reaches them as well, but is ours: they inherit that it waits.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(call, items)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from slow_progress(results, what, total=len(items))


@contextlib.contextmanager
def _processes() -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one's work, also if that is interrupted."""
    others = set(multiprocessing.active_children())
    # Spawned: the threads of this process would not survive a fork.
    workers = min(len(os.sched_getaffinity(0)), 16)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _unreadable(url: str, error: Exception) -> IndexedShard:
    return IndexedShard(url, skipped={SkipReason.UNREADABLE_SHARD: 1}, problem=str(error))


def _load(url: str, identity: list[Any], file: Path) -> IndexedShard:
    with np.load(file) as arrays:
        about = json.loads(bytes(arrays["about"]))
    return IndexedShard(url, identity, file=file, **about)
