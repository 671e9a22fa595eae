"""The samples of one source from first to last, decoded by several processes, in order."""

import itertools
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rfdit.data.sample import Decoder, RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.source import Source

PREFETCHED_CHUNKS = 2  # per worker
SECONDS_TO_STOP = 120  # that a worker lives on after a SIGTERM


@dataclass(frozen=True)
class DecodedSample:
    """An image, and the files beside it: its caption (txt), label (cls) and metadata (json)."""

    key: str
    image: UInt8[Tensor, "3 H W"]
    files: dict[str, bytes]


def decoded_samples(
    source: Source, decoder: Decoder, size: tuple[int, int], *, chunk: int, workers: int
) -> Generator[DecodedSample | SkipReason, None, None]:
    """Every sample of a source in its order, or why it was skipped.

    chunk: how many a worker decodes before another has its turn.
    workers: decoding processes; 0 decodes in this one.
    Raises ValueError if the decoder gives no images.
    """
    loader = DataLoader(
        _Chunks(source, decoder, size, chunk),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCHED_CHUNKS if workers else None,
        worker_init_fn=_leave_interrupts_to_the_parent,
    )
    for found in loader:
        rows = iter(() if found.images is None else found.images)
        for entry in found.entries:
            yield entry if isinstance(entry, SkipReason) else DecodedSample(entry[0], next(rows), entry[1])


@dataclass(frozen=True)
class _Chunk:
    """Samples on their way from a worker, images in one tensor: each tensor costs an open file.

    entries: key and files of a sample, or why it was skipped.
    """

    images: UInt8[Tensor, "n 3 H W"] | None
    entries: list[tuple[str, dict[str, bytes]] | SkipReason]


class _Chunks(IterableDataset[_Chunk]):
    """The chunks of a source that it is a worker's turn to decode."""

    def __init__(self, source: Source, decoder: Decoder, size: tuple[int, int], chunk: int) -> None:
        self.source, self.decoder, self.size, self.chunk = source, decoder, size, chunk

    def __iter__(self) -> Iterator[_Chunk]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        total = sum(self.source.shard_sizes)
        # One call with all numbers: a source that waits for a network can work ahead.
        starts = range(worker * self.chunk, total, workers * self.chunk)
        numbers = (n for start in starts for n in range(start, min(start + self.chunk, total)))
        found = map(self._decode, self.source.samples(numbers))
        while samples := list(itertools.islice(found, self.chunk)):
            images = [sample.image for sample in samples if isinstance(sample, DecodedSample)]
            yield _Chunk(
                images=torch.stack(images) if images else None,
                entries=[s if isinstance(s, SkipReason) else (s.key, s.files) for s in samples],
            )

    def _decode(self, raw: RawSample | SkippedSampleError) -> DecodedSample | SkipReason:
        try:
            if isinstance(raw, SkippedSampleError):
                raise raw
            sample = self.decoder(raw, self.size)
        except SkippedSampleError as skipped:
            return skipped.reason
        if sample.image is None:
            raise ValueError("data: there are no images to encode; data=latents is encoded already")
        files = {}
        if sample.caption is not None:
            files["txt"] = sample.caption.encode()
        if sample.label is not None:
            files["cls"] = str(sample.label).encode()
        if "json" in raw:
            files["json"] = cast(bytes, raw["json"])
        return DecodedSample(sample.key, sample.image, files)


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C, and often SIGTERM, reach the whole process group; the workers end with their parent.

    A worker that died first would make the parent's end an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_TO_STOP))
