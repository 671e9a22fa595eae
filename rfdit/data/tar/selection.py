"""The samples of a tar shard that a run uses: all intact ones, or those that pass its filters."""

from collections import Counter
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, cast

import numpy as np

from rfdit.data.decode import find_caption, find_metadata, image_bytes, measured
from rfdit.data.filters import Filters, Size
from rfdit.data.latents.decoder import EXTENSION, encoded_size
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.tar.format import TarScan, load_sample, scan_tar
from rfdit.storage.checksum import json_digest

COLUMNS = {"spans": 2, "links": 3, "image_sizes": 2}  # of the arrays of a selection


@dataclass(frozen=True)
class Selection:
    """Selects the samples of a shard: all that are intact, or those that also pass filters and have an image.

    filters: rules for dropping samples; None drops nothing.
    image_sizes: also measure every image; a sample without a readable image is then dropped.
    caption_key: where filters find a sample's caption, as in `SampleDecoder`. With active filters, a
        sample without a caption there is dropped.
    """

    filters: Filters | None = None
    image_sizes: bool = False
    caption_key: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides which samples are selected, as plain data."""
        filters = None
        if self._active is not None:
            filters = self._active.settings | {"caption_key": self.caption_key}
        return {"filters": filters, "image_sizes": self.image_sizes}

    @property
    def digest(self) -> str:
        """Short digest of the settings, for file names; empty if every intact sample is selected."""
        if self.settings == Selection().settings:
            return ""
        return json_digest(self.settings, digits=8)

    def __call__(
        self, file: BufferedIOBase, *, expected: int = 0
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """(arrays of the selected samples, counts of the others by reason).

        The arrays are `spans` and `links` as in `TarScan` and, if requested, `image_sizes`.

        expected: the number of samples that the shard once had. Those that are gone are counted as damaged, for
            damage at its end, zeros in place of samples, looks like the end itself.
        Raises CompressedTarError for a compressed tar.
        """
        scan = scan_tar(file)
        skipped = Counter(scan.skipped)
        if len(scan.spans) < expected:
            gone = expected - len(scan.spans)
            skipped[SkipReason.DAMAGED_TAR] = max(skipped[SkipReason.DAMAGED_TAR], gone)
        if not self.digest:
            return {"spans": scan.spans, "links": scan.links}, dict(skipped)
        chosen: list[int] = []
        sizes = []
        for number in range(len(scan.spans)):
            reason, size = self._judge(file.fileno(), scan, number)
            if reason is None:
                chosen.append(number)
                sizes.append(size or (0, 0))
            else:
                skipped[reason] += 1
        links = scan.links[np.isin(scan.links[:, 0], chosen)]
        links[:, 0] = np.searchsorted(chosen, links[:, 0])
        arrays = {"spans": scan.spans[chosen], "links": links}
        if self.image_sizes:
            arrays["image_sizes"] = np.array(sizes, np.int64).reshape(-1, 2)
        return arrays, dict(skipped)

    @property
    def _active(self) -> Filters | None:
        return self.filters if self.filters is not None and self.filters.active else None

    def _judge(self, descriptor: int, scan: TarScan, number: int) -> tuple[str | None, Size | None]:
        """(the reason to drop a sample or None, the size of its image if image_sizes is set)."""
        filters = self._active
        try:
            raw = load_sample(descriptor, scan.spans[number], scan.links, number)
            # Without filters the settings, and therefore the index's name, do not include the caption's key.
            key = None if filters is None else self.caption_key
            caption = None if key is None else find_caption(raw, key)
            data, latents = image_bytes(raw), raw.get(EXTENSION)  # the one or the other
            if self.image_sizes and data is None and latents is None:
                raise SkippedSampleError(SkipReason.MISSING_IMAGE)

            def size() -> Size | None:
                return None if data is None else measured(data)

            reason = None
            if filters is not None:
                reason = filters.drop_reason(find_metadata(raw), caption=caption, size=size)
            if not self.image_sizes or reason is not None:
                return reason, None
            return None, size() if data is not None else encoded_size(cast(bytes, latents))
        except SkippedSampleError as skipped:
            return skipped.reason, None
