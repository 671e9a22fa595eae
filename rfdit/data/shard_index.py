"""The usable samples of each tar shard: found once, filtered once, remembered."""

import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int
from rich.progress import track

from rfdit.data.cache_folder import write_atomically
from rfdit.data.decode import find_caption, image_bytes, image_size
from rfdit.data.filters import Filters, Size
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.spool import Spool, UnreadableShardError
from rfdit.data.tar import parse_sample
from rfdit.data.tar_index import CompressedTarError, index_tar

FORMAT = 1  # of the remembered indices
MANY = 32  # shards, from which on several processes pay
QUESTIONS = 32  # asked at once


@dataclass(frozen=True)
class IndexedShard:
    """What is known of one shard. `file` holds the spans; only sizes and counts stay in memory.

    identity: as `Spool.identity` gave it. problem: why it could not be read at all, if so.
    """

    url: str
    identity: list[Any] = field(default_factory=list)
    samples: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    file: Path | None = None
    problem: str | None = None

    def spans(self) -> Int[np.ndarray, "n 2"]:
        """First and last byte (exclusive) of each usable sample."""
        return self._array("spans")

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        """(height, width) of each usable sample's image."""
        return self._array("image_sizes")

    def _array(self, name: str) -> Int[np.ndarray, "n 2"]:
        if self.file is None:
            return np.empty((0, 2), np.int64)
        with np.load(self.file) as arrays:
            return arrays[name]


@dataclass(frozen=True)
class Indexer:
    """Finds the usable samples of shards, and remembers them in `folder`, named after all they depend on."""

    spool: Spool
    filters: Filters
    image_sizes: bool
    caption_key: str | None
    folder: Path

    def __call__(self, shards: Sequence[str]) -> list[IndexedShard]:
        """One for each shard, in order; those that are not remembered yet are read through.

        Raises ValueError if the folder, or the spool's, cannot be written to.
        """
        with ThreadPoolExecutor(QUESTIONS) as pool:  # servers and network disks answer slowly
            known = list(pool.map(self._remembered, shards))
        missing = [shard for shard, found in zip(shards, known) if found is None]
        if len(missing) < MANY:
            new = list(map(self._read, missing))
        else:
            # Spawned: the threads of this process would not survive a fork.
            workers = min(len(os.sched_getaffinity(0)), 16)
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as processes:
                new = list(track(processes.map(self._read, missing), "indexing shards", total=len(missing)))
        found = iter(new)
        return [next(found) if shard is None else shard for shard in known]

    def _place(self, identity: list[Any]) -> Path:
        asked = self.filters.settings | {"caption_key": self.caption_key} if self.filters.active else None
        about = [FORMAT, identity, {"filters": asked, "image_sizes": self.image_sizes}]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / digest[:2] / f"{digest}.npz"

    def _remembered(self, url: str) -> IndexedShard | None:
        try:
            identity = self.spool.identity(url)
        except UnreadableShardError as error:
            return _unreadable(url, error)
        try:
            return _load(url, identity, self._place(identity))
        except (OSError, ValueError, KeyError):  # not there, or half a disk's worth of it
            return None

    def _read(self, url: str) -> IndexedShard:
        """Reads a shard through, and remembers what it found unless the shard cannot be read at all."""
        try:
            identity = self.spool.identity(url)
            with self.spool.open(url, identity) as file:
                arrays, skipped = self._examine(cast(BufferedIOBase, file))
        except UnreadableShardError as error:
            return _unreadable(url, error)
        except CompressedTarError as error:
            raise ValueError(f"data.shards: {url} {error}") from None
        except OSError as error:
            return _unreadable(url, error)
        about = {"samples": len(arrays["spans"]), "skipped": skipped}
        encoded = np.frombuffer(json.dumps(about).encode(), np.uint8)
        place = self._place(identity)
        try:
            write_atomically(place, lambda out: np.savez(out, allow_pickle=False, about=encoded, **arrays))
        except OSError as error:
            raise ValueError(
                f"data.reader.cache: the index of {url} cannot be written to {self.folder}: {error.strerror}"
            ) from error
        return _load(url, identity, place)

    def _examine(self, file: BufferedIOBase) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """(spans and, if asked for, image sizes of the usable samples; what was left out, by reason)."""
        index = index_tar(file)
        skipped: Counter[str] = Counter()
        if index.damaged:
            skipped[SkipReason.DAMAGED_TAR] = index.damaged
        if index.truncated:
            skipped[SkipReason.TRUNCATED_TAR] = 1
        if not self.filters.active and not self.image_sizes:
            return {"spans": index.spans}, skipped
        kept, sizes = [], []
        for start, end in index.spans.tolist():
            reason, size = self._judge(os.pread(file.fileno(), end - start, start))
            if reason is None:
                kept.append((start, end))
                sizes.append(size or (0, 0))
            else:
                skipped[reason] += 1
        arrays = {"spans": np.array(kept, np.int64).reshape(-1, 2)}
        if self.image_sizes:
            arrays["image_sizes"] = np.array(sizes, np.int64).reshape(-1, 2)
        return arrays, skipped

    def _judge(self, sample: bytes) -> tuple[str | None, Size | None]:
        """(why a sample is left out or None, the size of its image if that is asked for)."""
        try:
            raw = parse_sample(sample)
            caption = None if self.caption_key is None else find_caption(raw, self.caption_key)
        except SkippedSampleError as skipped:
            return skipped.reason, None
        data = image_bytes(raw) or b""
        reason = self.filters.drop_reason(_metadata(raw), caption=caption, size=lambda: image_size(data))
        if reason is not None or not self.image_sizes:
            return reason, None
        size = image_size(data)
        return (None, size) if size else (SkipReason.CORRUPT_IMAGE, None)


def _unreadable(url: str, error: Exception) -> IndexedShard:
    return IndexedShard(url, skipped={SkipReason.UNREADABLE_SHARD: 1}, problem=str(error))


def _load(url: str, identity: list[Any], file: Path) -> IndexedShard:
    with np.load(file) as arrays:
        about = json.loads(bytes(arrays["about"]))
    return IndexedShard(url, identity, samples=about["samples"], skipped=about["skipped"], file=file)


def _metadata(raw: RawSample) -> dict[str, Any]:
    """A sample's JSON, or nothing."""
    try:
        found = json.loads(raw.get("json", b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
