"""One pass over the samples of a source, in order, decoded by several processes."""

import itertools
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rfdit.data.decode import image_bytes, image_size
from rfdit.data.sample import Decoder, RawSample, using
from rfdit.data.skips import SkippedSampleError
from rfdit.data.source import Source
from rfdit.processes.signals import outlive_signals

PREFETCHED_CHUNKS = 2  # per worker
Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class DecodedSample:
    """A decoded image, and the files beside it: its caption (txt), label (cls) and metadata (json).

    original: (height, width) of the image before it was resized and cropped; None where that is not known.
    """

    key: str
    image: UInt8[Tensor, "3 H W"]
    files: dict[str, bytes]
    original: Size | None = None


def decoded_samples(
    source: Source,
    decoder: Decoder,
    size: Size,
    *,
    chunk: int,
    workers: int,
    sizes: Int[np.ndarray, "n 2"] | None = None,
) -> Generator[DecodedSample | SkippedSampleError, None, None]:
    """Every sample of a source in its order, or the error that says why it was skipped.

    size: (height, width) of all images; sizes: that of each sample instead, in the order of the source.
    chunk: samples that a worker decodes in turn.
    workers: decoding processes; 0 decodes in this one.
    Raises ValueError if the decoder gives no images.
    """
    loader = DataLoader(
        _Chunks(source, decoder, size, chunk, sizes),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCHED_CHUNKS if workers else None,
        worker_init_fn=outlive_signals,
    )
    for decoded in loader:
        rows = {size: iter(images) for size, images in decoded.images.items()}
        for entry in decoded.entries:
            if isinstance(entry, SkippedSampleError):
                yield entry
            else:
                yield DecodedSample(entry.key, next(rows[entry.size]), entry.files, entry.original)


@dataclass(frozen=True)
class _Entry:
    """A sample without its image, which is the next one of its size."""

    key: str
    size: Size
    files: dict[str, bytes]
    original: Size | None


@dataclass(frozen=True)
class _Chunk:
    """The samples that a worker sends at once, with their images in one tensor for each size.

    Each tensor costs an open file.

    entries: a sample, or the error that says why it was skipped.
    """

    images: Mapping[Size, UInt8[Tensor, "n 3 H W"]]
    entries: list[_Entry | SkippedSampleError]


class _Chunks(IterableDataset[_Chunk]):
    """A worker's chunks of a source: every n-th of n workers."""

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        size: Size,
        chunk: int,
        sizes: Int[np.ndarray, "n 2"] | None,
    ) -> None:
        self.source, self.decoder, self.size, self.chunk = source, decoder, size, chunk
        self.sizes = sizes

    def __iter__(self) -> Iterator[_Chunk]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        total = sum(self.source.shard_sizes)
        # One call with all numbers, so that a source that waits for a network can work ahead.
        starts = range(worker * self.chunk, total, workers * self.chunk)
        numbers = (n for start in starts for n in range(start, min(start + self.chunk, total)))
        own, ahead = itertools.tee(numbers)
        found = map(self._decode, self.source.samples(ahead), own)
        while samples := list(itertools.islice(found, self.chunk)):
            images: dict[Size, list[Tensor]] = {}
            entries: list[_Entry | SkippedSampleError] = []
            for sample in samples:
                if isinstance(sample, SkippedSampleError):
                    entries.append(sample)
                    continue
                height, width = sample.image.shape[1:]
                images.setdefault((height, width), []).append(sample.image)
                entries.append(_Entry(sample.key, (height, width), sample.files, sample.original))
            yield _Chunk({size: torch.stack(each) for size, each in images.items()}, entries)

    def _decode(self, raw: RawSample | SkippedSampleError, number: int) -> DecodedSample | SkippedSampleError:
        size = self.size if self.sizes is None else tuple(self.sizes[number].tolist())
        try:
            with using(raw) as found:
                sample = self.decoder(found, cast(Size, size))
                data = image_bytes(found)
        except SkippedSampleError as skipped:
            return skipped.with_traceback(None)
        if sample.image is None:
            raise ValueError("data: there are no images to encode; data=latents is encoded already")
        files = {}
        if sample.caption is not None:
            files["txt"] = sample.caption.encode()
        if sample.label is not None:
            files["cls"] = str(sample.label).encode()
        if "json" in found:
            files["json"] = cast(bytes, found["json"])
        return DecodedSample(sample.key, sample.image, files, None if data is None else image_size(data))
