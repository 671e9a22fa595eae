"""Real images that a reference is made of: training data, a folder of images, or an npz of bytes."""

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from rfdit.data.decode import MAX_PIXELS, MAX_SIDE, image_size, read_image
from rfdit.data.image_files import ENDINGS, list_images, warn_of_other_files
from rfdit.data.sample import Decoder, RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason, listed
from rfdit.data.source import Source
from rfdit.data.stream.one_pass import decoded_samples

CHUNK_BYTES = 1 << 26  # bytes of an npz that are read at a time
CHUNK_IMAGES = 32  # images that a worker decodes at a time


@runtime_checkable
class RealImages(Protocol):
    """A set of images of one size.

    name: their source, in words. count: number of images, of which some may turn out to be unreadable.
    skipped: number of images that are left out by reason, once all have been read.
    """

    name: str
    count: int
    skipped: Counter[str]

    def __iter__(self) -> Iterator[UInt8[Tensor, "3 H W"]]: ...


class DecodedImages:
    """The images of a source, see `RealImages`.

    size: (height, width) that the decoder brings them to.
    count: number of images, drawn at random from `seed`; None for all. workers: decoding processes.

    Raises ValueError if there are not `count` images, and in the end if none of them can be read.
    """

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        size: tuple[int, int],
        *,
        name: str,
        count: int | None,
        seed: int,
        workers: int,
    ) -> None:
        self.name, self.count = name, sum(source.shard_sizes)
        if count is not None:
            if not 2 <= count <= self.count:
                raise ValueError(f"count={count}: there are {self.count} images, and at least 2 are needed")
            chosen = np.random.default_rng(seed).permutation(self.count)[:count]
            source = SourceSubset(source, chosen)
            self.name, self.count = f"{name}, {count} random images", count
        self._source, self._decoder, self._size, self._workers = source, decoder, size, workers
        self.skipped: Counter[str] = Counter(source.skipped())

    def __iter__(self) -> Iterator[UInt8[Tensor, "3 H W"]]:
        first: SkippedSampleError | None = None
        read = False
        samples = decoded_samples(
            self._source, self._decoder, self._size, chunk=CHUNK_IMAGES, workers=self._workers
        )
        for sample in samples:
            if isinstance(sample, SkippedSampleError):
                self.skipped[sample.reason] += 1
                first = first or sample
            else:
                read = True
                yield sample.image
        if not read:
            raise ValueError(f"{self.name}: no image can be used: {listed(self.skipped)}; the first: {first}")


class SourceSubset:
    """Chosen samples of a source, renumbered in its order; see `rfdit.data.source.Source`."""

    def __init__(self, source: Source, chosen: Int[np.ndarray, "n"]) -> None:
        self._source, self._chosen = source, np.sort(chosen)
        self.shard_sizes: Sequence[int] = [len(chosen)]

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        return self._source.samples(int(self._chosen[number]) for number in numbers)

    def skipped(self) -> Mapping[str, int]:
        return self._source.skipped()

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        return self._source.image_sizes()[self._chosen]


class ImageFiles:
    """All images below a folder, in the order of their paths; see `rfdit.data.source.Source`.

    Raises ValueError if there are none.
    """

    def __init__(self, root: Path) -> None:
        found, others = list_images(os.fsencode(root))
        self._files = [os.path.join(root, os.fsdecode(path)) for path in found]
        if not self._files:
            raise ValueError(
                f"images={root} has no images, files that end in {ENDINGS}, but {listed(others) or 'no file'}"
            )
        warn_of_other_files(others, f"images={root}")
        self._others = others.total()
        self.shard_sizes: Sequence[int] = [len(self._files)]

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        for number in numbers:
            path = self._files[number]
            try:
                yield {"__key__": path, path.rpartition(".")[2].lower(): read_image(path)}
            except SkippedSampleError as skipped:
                yield skipped

    def skipped(self) -> Mapping[str, int]:
        return {SkipReason.UNKNOWN_SUFFIX: self._others} if self._others else {}

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        return np.array([image_size(path) or (0, 0) for path in self._files])

    def one_size(self) -> tuple[int, int]:
        """(height, width) of all images; raises ValueError if they differ."""
        sizes = self.image_sizes()
        readable = sizes[sizes[:, 0] > 0]
        if not len(readable) or (readable != readable[0]).any():
            raise ValueError(
                "images: they have different sizes, or none that can be read; give resolution=256, "
                "to which they are resized and cropped as in training"
            )
        return int(readable[0, 0]), int(readable[0, 1])


class NpzImages:
    """The array `arr_0` of an npz, uint8 (N, H, W, 3), read a part at a time; see `RealImages`.

    Raises ValueError for a file without such an array.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, path.name
        self.skipped: Counter[str] = Counter()
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                shape, dtype = _read_header(file)
        except Exception as error:  # of zipfile, which has many
            raise ValueError(f"images={path} is not an npz with images as arr_0: {error}") from None
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise ValueError(
                f"images={path}: arr_0 is {dtype} of shape {shape} and must be RGB bytes (N, H, W, 3); repeat a "
                "grey channel three times, put transparent images on a background"
            )
        count, height, width = shape[:3]
        if (
            count < 1
            or min(height, width) < 1
            or max(height, width) > MAX_SIDE
            or height * width > MAX_PIXELS
        ):
            raise ValueError(
                f"images={path}: arr_0 has the shape {shape}, which no set of images has; give at least one image, "
                f"of sides from 1 to {MAX_SIDE:,} and at most {MAX_PIXELS:,} pixels"
            )
        self.count, self.size = count, (height, width)

    def __iter__(self) -> Iterator[UInt8[Tensor, "3 H W"]]:
        height, width = self.size
        image_bytes = height * width * 3
        chunk = max(1, CHUNK_BYTES // image_bytes)
        with zipfile.ZipFile(self._path) as archive, archive.open("arr_0.npy") as file:
            _read_header(file)
            for start in range(0, self.count, chunk):
                n = min(chunk, self.count - start)
                try:
                    read = bytearray(file.read(n * image_bytes))
                except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                    raise ValueError(
                        f"images={self._path} is damaged in image {start} or behind it: {error}"
                    ) from None
                if len(read) < n * image_bytes:
                    raise ValueError(
                        f"images={self._path} ends within image {start + len(read) // image_bytes}"
                    )
                images = torch.frombuffer(read, dtype=torch.uint8).view(n, height, width, 3)
                yield from images.permute(0, 3, 1, 2)


def _read_header(file: IO[bytes] | zipfile.ZipExtFile) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an npy file; leaves the file at its data."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if fortran_order:
        raise ValueError("it is in Fortran order")
    return shape, dtype
