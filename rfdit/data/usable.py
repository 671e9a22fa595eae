"""The samples of a tar shard that a run wants: found by its headers, and judged one by one if it is asked for."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import numpy as np

from rfdit.data.decode import find_caption, image_bytes, image_size
from rfdit.data.filters import Filters, Size
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.tar import parse_sample
from rfdit.data.tar_index import index_tar


@dataclass(frozen=True)
class Usable:
    """Which samples are usable: all that are whole, or those that also pass filters and have an image.

    filters: what is dropped; None for nothing.
    image_sizes: whether the size of every image is wanted; a sample without one is no use then.
    caption_key: where filters find a sample's caption, as in `SampleDecoder`. Only with them is one
        without it no use.
    """

    filters: Filters | None = None
    image_sizes: bool = False
    caption_key: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is found, as plain data."""
        asked = None
        if (filters := self._active) is not None:
            asked = filters.settings | {"caption_key": self.caption_key}
        return {"filters": asked, "image_sizes": self.image_sizes}

    @property
    def mark(self) -> str:
        """Of the settings, for names of files; empty if every whole sample is usable."""
        if self.settings == Usable().settings:
            return ""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]

    def __call__(self, file: BufferedIOBase) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """(spans and, if asked for, image_sizes of the usable samples; what was left out, by reason).

        Raises CompressedTarError for a compressed tar.
        """
        index = index_tar(file)
        skipped: Counter[str] = Counter()
        if index.damaged:
            skipped[SkipReason.DAMAGED_TAR] = index.damaged
        if index.truncated:
            skipped[SkipReason.TRUNCATED_TAR] = 1
        if not self.mark:
            return {"spans": index.spans}, dict(skipped)
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
        return arrays, dict(skipped)

    @property
    def _active(self) -> Filters | None:
        return self.filters if self.filters is not None and self.filters.active else None

    def _judge(self, sample: bytes) -> tuple[str | None, Size | None]:
        """(why a sample is left out or None, the size of its image if that is asked for)."""
        filters = self._active
        try:
            raw = parse_sample(sample)
            # Without filters the settings, and so the index's name, do not tell where captions are.
            key = None if filters is None else self.caption_key
            caption = None if key is None else find_caption(raw, key)
        except SkippedSampleError as skipped:
            return skipped.reason, None
        data = image_bytes(raw) or b""
        if filters is not None:
            reason = filters.drop_reason(_metadata(raw), caption=caption, size=lambda: image_size(data))
            if reason is not None:
                return reason, None
        size = image_size(data) if self.image_sizes else None
        return (SkipReason.CORRUPT_IMAGE if self.image_sizes and size is None else None), size


def _metadata(raw: RawSample) -> dict[str, Any]:
    """A sample's JSON, or nothing."""
    try:
        found = json.loads(raw.get("json", b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
