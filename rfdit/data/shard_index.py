"""The usable samples of each tar shard: found once, filtered once, remembered."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int
from rich.progress import track

from rfdit.data.cache_folder import cache_root, write_atomically
from rfdit.data.decode import image_bytes, image_size
from rfdit.data.filters import Filters, Size
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.spool import Spool
from rfdit.data.tar import parse_sample
from rfdit.data.tar_index import index_tar

FORMAT = 1  # of the remembered indices
MANY = 32  # shards, from which on several processes pay


@dataclass(frozen=True)
class IndexedShard:
    """What is known of one shard. `file` holds the spans; only sizes and counts stay in memory."""

    url: str
    samples: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    file: Path | None = None

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


def index_shards(
    shards: Sequence[str], *, spool: Spool, filters: Filters, image_sizes: bool, cache: str | None
) -> list[IndexedShard]:
    """One for each shard, in order; those that are not remembered yet are read through."""
    folder = (cache_root() if cache is None else Path(cache).expanduser()) / "index"
    index = partial(_indexed, spool=spool, filters=filters, image_sizes=image_sizes, folder=folder)
    known = [_remembered(shard, spool, filters, image_sizes, folder) for shard in shards]
    missing = [shard for shard, found in zip(shards, known) if found is None]
    if len(missing) < MANY:
        new = list(map(index, missing))
    else:
        # Spawned: the threads of this process would not survive a fork.
        workers = min(os.cpu_count() or 1, 16)
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            new = list(track(pool.map(index, missing), "indexing shards", total=len(missing)))
    found = iter(new)
    return [next(found) if shard is None else shard for shard in known]


def _place(url: str, spool: Spool, filters: Filters, image_sizes: bool, folder: Path) -> Path:
    """Where a shard's index is kept: named after all that it depends on. Raises OSError without the shard."""
    settings = {"filters": filters.settings if filters.active else None, "image_sizes": image_sizes}
    about = [FORMAT, spool.identity(url), settings]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    return folder / digest[:2] / f"{digest}.npz"


def _remembered(
    url: str, spool: Spool, filters: Filters, image_sizes: bool, folder: Path
) -> IndexedShard | None:
    try:
        return _load(url, _place(url, spool, filters, image_sizes, folder))
    except (OSError, ValueError, KeyError):  # not there, or half a disk's worth of it
        return None


def _load(url: str, file: Path) -> IndexedShard:
    with np.load(file) as arrays:
        about = json.loads(bytes(arrays["about"]))
    return IndexedShard(url, samples=about["samples"], skipped=about["skipped"], file=file)


def _indexed(url: str, *, spool: Spool, filters: Filters, image_sizes: bool, folder: Path) -> IndexedShard:
    """Reads a shard through, and remembers what it found unless the shard cannot be read at all."""
    try:
        place = _place(url, spool, filters, image_sizes, folder)
        with spool.open(url) as file:
            try:
                arrays, skipped = _examine(cast(BufferedIOBase, file), filters, image_sizes)
            except ValueError as error:
                raise ValueError(f"data.shards: {url} {error}") from None
    except OSError:
        return IndexedShard(url, skipped={SkipReason.UNREADABLE_SHARD: 1})
    about = {"samples": len(arrays["spans"]), "skipped": skipped}
    encoded = np.frombuffer(json.dumps(about).encode(), np.uint8)
    write_atomically(place, lambda out: np.savez(out, allow_pickle=False, about=encoded, **arrays))
    return _load(url, place)


def _examine(
    file: BufferedIOBase, filters: Filters, image_sizes: bool
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(spans and, if asked for, image sizes of the usable samples; what was left out, by reason)."""
    index = index_tar(file)
    skipped: dict[str, int] = {}
    if index.damaged:
        skipped[SkipReason.DAMAGED_TAR] = index.damaged
    if index.truncated:
        skipped[SkipReason.TRUNCATED_TAR] = 1
    if not filters.active and not image_sizes:
        return {"spans": index.spans}, skipped
    kept, sizes = [], []
    for start, end in index.spans.tolist():
        reason, size = _judge(os.pread(file.fileno(), end - start, start), filters, image_sizes)
        if reason is None:
            kept.append((start, end))
            sizes.append(size or (0, 0))
        else:
            skipped[reason] = skipped.get(reason, 0) + 1
    arrays = {"spans": np.array(kept, np.int64).reshape(-1, 2)}
    if image_sizes:
        arrays["image_sizes"] = np.array(sizes, np.int64).reshape(-1, 2)
    return arrays, skipped


def _judge(sample: bytes, filters: Filters, image_sizes: bool) -> tuple[str | None, Size | None]:
    """(why a sample is left out or None, the size of its image if that is asked for)."""
    try:
        raw = parse_sample(sample)
    except SkippedSampleError as skipped:
        return skipped.reason, None
    metadata = _metadata(raw)
    caption = raw.get("txt")
    text = caption.decode("utf-8", "replace") if isinstance(caption, bytes) else metadata.get("caption")
    data = image_bytes(raw) or b""
    reason = filters.drop_reason(metadata, caption=text, size=lambda: image_size(data))
    if reason is not None or not image_sizes:
        return reason, None
    size = image_size(data)
    return (None, size) if size else (SkipReason.CORRUPT_IMAGE, None)


def _metadata(raw: RawSample) -> dict[str, Any]:
    """A sample's JSON, or nothing."""
    try:
        found = json.loads(raw.get("json", b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
