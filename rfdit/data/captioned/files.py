"""Images as files, each with what is known of it: the source of folders and of tables of file names."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Int

from rfdit.counted import counted
from rfdit.data.decode import read_image
from rfdit.data.filters import Filters
from rfdit.data.image_files import THREADS, PackedBytes, extension_of, readable, sizes_of, unusable
from rfdit.data.numbers import plain_json
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, listed

TOGETHER = (
    1000  # images that a thread looks at before it takes others: each alone would cost more to hand over
)


@dataclass(frozen=True)
class ListedImages:
    """The images that a folder or a table names.

    root: the folder of the images. paths: theirs, below it.
    about: the metadata of an image by its number, with all of its captions in `captions`, if it has any;
        raises SkippedSampleError for one that cannot be read.
    left_out: counts, by reason, of what is in the folder or the table and is not a sample.
    label: the class of an image by its number; None if there are no classes.
    caption_remark: as of `RemarksOnCaptions`.
    """

    root: str
    paths: PackedBytes
    about: Callable[[int], dict[str, Any]]
    left_out: Counter[str]
    label: Callable[[int], int] | None = None
    caption_remark: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def kinds(self) -> Counter[str]:
        """Numbers of the images by suffix."""
        return Counter(f".{readable(extension_of(self.paths[n]))}" for n in range(len(self)))


class FileSource:
    """The images of a list that pass the filters. A `Source`.

    Samples have the keys "__key__" (the path without its suffix), the suffix in lower case, "txt" (the first
    caption, if there is one), "json" (the metadata, with all captions in `captions`), and "cls" (the class, if
    there are classes).
    Raises ValueError if no image is left.
    """

    def __init__(self, images: ListedImages, *, filters: Filters, image_sizes: bool) -> None:
        self._images, self._skipped = images, Counter(images.left_out)
        self.caption_remark = images.caption_remark
        needs_sizes = image_sizes or filters.min_size is not None or filters.max_aspect is not None
        sizes = sizes_of(images.root, images.paths) if needs_sizes else None
        self._numbers = self._filtered(filters, sizes)
        self._sizes = sizes[self._numbers] if image_sizes and sizes is not None else None
        self.shard_sizes: Sequence[int] = [len(self._numbers)]
        if not len(self._numbers):
            raise ValueError(
                f"data.shards: {images.root}: none of {counted(len(images), 'image')} is left: {listed(self._skipped)}"
            )

    def _filtered(
        self, filters: Filters, sizes: Int[np.ndarray, "files 2"] | None
    ) -> Int[np.ndarray, "selected"]:
        """The numbers of the images that pass the filters; the others are counted."""
        if not filters.active and sizes is None:
            return np.arange(len(self._images))

        def reason(number: int) -> str | None:
            size = None if sizes is None else tuple(sizes[number].tolist())
            if size == (0, 0):
                return unusable(self._images.root, self._images.paths[number])
            try:
                about = self._images.about(number) if filters.active else {}
            except SkippedSampleError as skipped:
                return str(skipped.reason)
            caption = next(iter(about.get("captions", ())), None)
            return filters.drop_reason(about, caption=caption, size=lambda: size)

        def reasons_of(numbers: range) -> list[str | None]:
            return [reason(number) for number in numbers]

        count = len(self._images)
        parts = [range(start, min(start + TOGETHER, count)) for start in range(0, count, TOGETHER)]
        with ThreadPoolExecutor(THREADS) as pool:
            reasons = list(chain.from_iterable(pool.map(reasons_of, parts)))
        self._skipped.update(each for each in reasons if each is not None)
        return np.array([n for n, each in enumerate(reasons) if each is None], dtype=np.int64)

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        for number in numbers:
            try:
                yield self._read(int(self._numbers[number]))
            except SkippedSampleError as skipped:
                yield skipped

    def _read(self, number: int) -> RawSample:
        path = self._images.paths[number]
        key, _, extension = path.rpartition(b".")
        try:
            about = self._images.about(number)
            data = read_image(os.path.join(os.fsencode(self._images.root), path))
        except SkippedSampleError as skipped:
            skipped.sample = f"{readable(path)} of {self._images.root}"
            raise
        files: dict[str, str | bytes] = {"__key__": readable(key), readable(extension).lower(): data}
        if self._images.label is not None:
            files["cls"] = str(self._images.label(number)).encode()
        return files | metadata_files(about)

    def skipped(self) -> Mapping[str, int]:
        return self._skipped

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        if self._sizes is None:
            raise ValueError("image sizes are available only if the source was opened with image_sizes=True")
        return self._sizes


def metadata_files(about: Mapping[str, Any]) -> dict[str, str | bytes]:
    """The files txt and json of a sample. about: its metadata, with its captions in `captions`, if it has any."""
    encoded = json.dumps(plain_json(dict(about)), ensure_ascii=False, default=str).encode(errors="replace")
    captions = about.get("captions")
    return {"json": encoded} | ({"txt": captions[0].encode(errors="replace")} if captions else {})
