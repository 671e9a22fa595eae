"""Images as files: listed, measured, and their paths held in little memory."""

import contextlib
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int

from rfdit.data.decode import image_size, measured
from rfdit.data.pixels import IMAGE_EXTENSIONS
from rfdit.data.skips import SkippedSampleError, SkipReason, listed
from rfdit.storage.checked import DamagedFileError, read_checked_arrays, write_checked_arrays
from rfdit.storage.disk_cache import cache_root

EXTENSIONS = frozenset(extension.encode() for extension in IMAGE_EXTENSIONS)
ENDINGS = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
THREADS = 16  # network disks answer slowly, but many requests at the same time
HEADERS_AT_ONCE = 1000  # per thread


def readable(name: bytes) -> str:
    """A file's name as printable text, whatever its bytes are."""
    return name.decode("utf-8", errors="backslashreplace")


def extension_of(path: bytes) -> bytes:
    """What follows the last dot of a path's name, in lower case; empty without a dot."""
    name = path.rpartition(b"/")[2]
    return name.rpartition(b".")[2].lower() if b"." in name else b""


class PackedBytes:
    """Many byte strings in two objects.

    ImageNet's paths take 37 bytes each. As a list of Python strings they take 86, and every forked
    worker would come to own a copy, as reference counts are written.
    """

    def __init__(self, groups: Iterable[Sequence[bytes]]) -> None:
        blobs, lengths = [], []
        for group in groups:
            blobs.append(b"".join(group))
            lengths.append(np.fromiter(map(len, group), dtype=np.int64, count=len(group)))
        self.blob = b"".join(blobs)
        self._ends = np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> bytes:
        return self.blob[self._ends[number] : self._ends[number + 1]]


def list_files(root: bytes, folder: bytes = b"") -> Iterator[bytes]:
    """The paths below the root of all files in a folder, in any order.

    Names that begin with a dot are left out. Links to folders are followed, unless they lead up again.
    """
    pending = [os.path.join(folder, b"")]
    while pending:
        below = pending.pop()
        here = os.path.join(root, below)
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if not entry.is_dir():
                    yield below + entry.name
                elif not (entry.is_symlink() and _is_inside(here, entry.path)):
                    pending.append(below + entry.name + b"/")


def list_images(root: bytes, folder: bytes = b"") -> tuple[list[bytes], Counter[str]]:
    """(sorted paths below the root of all images in a folder, counts of the other files in it by suffix).

    The files are those of `list_files`.
    """
    images, others = [], Counter[str]()
    for path in list_files(root, folder):
        if (extension := extension_of(path)) in EXTENSIONS:
            images.append(path)
        else:
            others[suffix_in_words(extension)] += 1
    return sorted(images), others


def suffix_in_words(extension: bytes) -> str:
    """`.txt`, or `without a suffix`."""
    return f".{readable(extension)}" if extension else "without a suffix"


def warn_of_other_files(others: Counter[str], where: str) -> None:
    """Warn of files that are left out because their suffixes are not those of images."""
    if others:
        warnings.warn(
            f"{where}: leaving out files whose suffixes are not those of images: {listed(others)}",
            stacklevel=3,
        )


def _is_inside(path: bytes, folder: bytes) -> bool:
    real = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), real]) == real


def sizes_of(root: str, paths: PackedBytes) -> Int[np.ndarray, "files 2"]:
    """(height, width) of each image, zeros without a readable header; cached under `cache_root()`."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(root)) + b"\n" + paths.blob).hexdigest()
    cached = cache_root() / "image-sizes" / f"{digest[:16]}.npz"
    with contextlib.suppress(OSError, DamagedFileError):
        return read_checked_arrays(cached)[1]["sizes"]
    encoded = os.fsencode(root)

    def read(start: int) -> Int[np.ndarray, "part 2"]:
        numbers = range(start, min(start + HEADERS_AT_ONCE, len(paths)))
        files = (os.fsdecode(os.path.join(encoded, paths[n])) for n in numbers)
        return np.array([image_size(file) or (0, 0) for file in files], dtype=np.int32)

    with ThreadPoolExecutor(THREADS) as pool:
        sizes = np.concatenate([*pool.map(read, range(0, len(paths), HEADERS_AT_ONCE))])
    write_checked_arrays(cached, {}, sizes=sizes)
    return sizes


def unusable(root: str, path: bytes) -> str:
    """The reason why an image below a root has no size."""
    try:
        measured(os.fsdecode(os.path.join(os.fsencode(root), path)))
    except SkippedSampleError as error:
        return str(error.reason)
    return str(SkipReason.CORRUPT_IMAGE)  # repaired since its size was cached
