"""The images that reference statistics are of: training data, a folder of pictures, or an npz of bytes."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from rfdit.data.decode import IMAGE_EXTENSIONS, image_size
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.source import Source

CHUNK_BYTES = 1 << 26  # of an npz, read at a time


class PictureFolder:
    """All images below a folder, in the order of their paths; see `rfdit.data.source.Source`.

    Raises ValueError if it has none.
    """

    def __init__(self, root: Path) -> None:
        self._files = sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(root)
            for name in names
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
        )
        if not self._files:
            raise ValueError(
                f"images={root} has no images, files that end in {', '.join('.' + e for e in IMAGE_EXTENSIONS)}"
            )
        self.shard_sizes: Sequence[int] = [len(self._files)]

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        for number in numbers:
            path = self._files[number]
            try:
                yield {"__key__": path, path.rpartition(".")[2].lower(): Path(path).read_bytes()}
            except OSError as error:
                yield SkippedSampleError(SkipReason.MISSING_IMAGE, str(error))

    def skipped(self) -> Mapping[str, int]:
        return {}

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


class SourcePart:
    """Some samples of a source, renumbered in its order; see `rfdit.data.source.Source`."""

    def __init__(self, source: Source, chosen: Int[np.ndarray, "n"]) -> None:
        self._source, self._chosen = source, np.sort(chosen)
        self.shard_sizes: Sequence[int] = [len(chosen)]

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        return self._source.samples(int(self._chosen[number]) for number in numbers)

    def skipped(self) -> Mapping[str, int]:
        return self._source.skipped()

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        return self._source.image_sizes()[self._chosen]


class NpzImages:
    """The images `arr_0`, uint8 (N, H, W, 3), of an npz, read a part at a time.

    Raises ValueError for a file without them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                shape, dtype = _read_header(file)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"images={path} is no npz with images as arr_0: {error}") from None
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise ValueError(
                f"images={path}: arr_0 is {dtype} of shape {shape}, and RGB bytes (N, H, W, 3) are wanted; repeat a "
                "grey channel three times, put transparent images on a background"
            )
        self.count, self.size = shape[0], (shape[1], shape[2])

    def __iter__(self) -> Iterator[UInt8[Tensor, "3 H W"]]:
        height, width = self.size
        bytes_each = height * width * 3
        at_once = max(1, CHUNK_BYTES // bytes_each)
        with zipfile.ZipFile(self._path) as archive, archive.open("arr_0.npy") as file:
            _read_header(file)
            for start in range(0, self.count, at_once):
                n = min(at_once, self.count - start)
                read = bytearray(file.read(n * bytes_each))
                if len(read) < n * bytes_each:
                    raise ValueError(
                        f"images={self._path} ends within image {start + len(read) // bytes_each}"
                    )
                chunk = torch.frombuffer(read, dtype=torch.uint8).view(n, height, width, 3)
                yield from chunk.permute(0, 3, 1, 2)


def _read_header(file: IO[bytes] | zipfile.ZipExtFile) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an npy; the file stands behind its header then."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran:
        raise ValueError("it is in Fortran's order")
    return shape, dtype
