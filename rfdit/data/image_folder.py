"""Class-conditional pictures as a tree of files, root/CLASS/**/*.jpg: ImageNet as it is unpacked."""

import hashlib
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Int

from rfdit.data.cache_folder import cache_root, write_atomically
from rfdit.data.class_names import read_class_names
from rfdit.data.decode import IMAGE_EXTENSIONS, image_size
from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason

EXTENSIONS = frozenset(extension.encode() for extension in IMAGE_EXTENSIONS)
THREADS = 16  # network disks answer slowly, and several questions at once
HEADERS_AT_ONCE = 1000  # per thread


class ImageFolder:
    """Opens a tree whose first level of folders are the classes, numbered in sorted order.

    That is torchvision's numbering, and ImageNet's. Folders and files whose names begin with a dot
    are left out. All files are one logical shard, so that classes mix.

    names: file of readable names, as `read_class_names` takes it; None: the folders' names.
    num_classes: how many folders there must be, as many as the model knows; None: any number.

    Opening lists the tree, anew each time: 100,000 files take 0.3 s on a local disk. What filters by size
    and aspect-ratio buckets ask for is in the images' headers, 100,000 of which take 5 s. They are read
    once and kept under `cache_root()` for as long as no file is added, removed or renamed; an image put
    in another's place under its name goes unnoticed.
    """

    suffixes = ()

    def __init__(self, *, names: str | None = None, num_classes: int | None = None) -> None:
        self.names, self.num_classes = names, num_classes
        self._classes: list[str] | None = None  # of the tree that was opened first

    def __call__(
        self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False
    ) -> "ImageFolderSource":
        """shards: the one tree.

        Raises ValueError if it is none, has another number of classes, a class without a name, or
        no image that passes the filters.
        """
        root = self._root(shards)
        folders = class_folders(root)
        if not folders:
            raise ValueError(
                f"data.shards: {root} has no class folders; ImageFolder reads root/CLASS/*.jpg, one class a folder"
            )
        readable = [_text(folder) for folder in folders]
        if self.num_classes not in (None, len(folders)):
            raise ValueError(
                f"data.shards: {root} has {len(folders)} class folders, {readable[0]} to {readable[-1]}, and "
                f"conditioner.num_classes={self.num_classes}; give conditioner.num_classes={len(folders)}"
            )
        if self._classes not in (None, readable):
            raise ValueError(
                f"data.val_shards: {root} has other class folders than data.shards, so its classes have other numbers"
            )
        self._classes = readable
        names = readable
        if self.names is not None:
            names = read_class_names(self.names, setting="data.reader.names", folders=readable)
        paths, class_ends = _list_images(root, folders)
        needs_sizes = image_sizes or filters.min_size is not None or filters.max_aspect is not None
        sizes = _image_sizes(root, paths) if needs_sizes else None
        kept, skipped = _filter(filters, sizes, class_ends, names)
        if not kept.any():
            counts = ", ".join(f"{n} {reason}" for reason, n in sorted(skipped.items()))
            raise ValueError(f"data.shards: {root}: none of {len(paths)} images is left: {counts}")
        return ImageFolderSource(
            root, paths, class_ends, names, kept, skipped, sizes if image_sizes else None
        )

    @staticmethod
    def _root(shards: Sequence[str]) -> str:
        if len(shards) == 1 and os.path.isdir(root := os.path.expanduser(shards[0])):
            return root
        given = shards[0] if len(shards) == 1 else f"{len(shards)} paths, the first of them {shards[0]},"
        raise ValueError(
            f"data.shards: {given} is not one folder; data=imagenet reads a tree root/CLASS/*.jpg; for tar "
            "shards use data=imagenet_wds"
        )


class PackedPaths:
    """Many byte strings in two objects.

    ImageNet's paths take 37 bytes each, and 86 as a list of Python strings, which every forked worker
    would come to own a copy of, as reference counts are written.
    """

    def __init__(self, paths: Iterable[Sequence[bytes]]) -> None:
        blobs, lengths = [], []
        for group in paths:
            blobs.append(b"".join(group))
            lengths.append(np.fromiter(map(len, group), dtype=np.int64, count=len(group)))
        self.blob = b"".join(blobs)
        self._ends = np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> bytes:
        return self.blob[self._ends[number] : self._ends[number + 1]]


class ImageFolderSource:
    """The images of a tree, numbered class by class; see `rfdit.data.source.Source`.

    Samples have the keys "__key__" (the path in the tree without its extension), the extension in
    lower case, "cls" (the class number) and "txt" (the class's name).
    """

    def __init__(
        self,
        root: str,
        paths: PackedPaths,
        class_ends: Int[np.ndarray, "c"],
        names: Sequence[str],
        kept: Bool[np.ndarray, "files"],
        skipped: Mapping[str, int],
        sizes: Int[np.ndarray, "files 2"] | None,
    ) -> None:
        self._root, self._paths, self._class_ends, self._names = os.fsencode(root), paths, class_ends, names
        self._files = np.flatnonzero(kept)
        self._skipped, self._sizes = dict(skipped), None if sizes is None else sizes[kept]
        self.shard_sizes: Sequence[int] = [len(self._files)]

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        for number in numbers:
            yield self._read(int(self._files[number]))

    def _read(self, file: int) -> RawSample | SkippedSampleError:
        path = self._paths[file]
        label = int(np.searchsorted(self._class_ends, file, side="right"))
        try:
            with open(os.path.join(self._root, path), "rb") as image:
                data = image.read()
        except OSError as error:  # gone since it was listed, or a link to nowhere
            return SkippedSampleError(SkipReason.MISSING_IMAGE, str(error))
        key, _, extension = path.rpartition(b".")
        return {
            "__key__": _text(key),
            _text(extension).lower(): data,
            "cls": str(label).encode(),
            "txt": self._names[label].encode(),
        }

    def skipped(self) -> Mapping[str, int]:
        return self._skipped

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        if self._sizes is None:
            raise ValueError("image sizes are known only to a source that was opened with image_sizes=True")
        return self._sizes


def _text(name: bytes) -> str:
    """A file's name as it can be printed, whatever its bytes are."""
    return name.decode("utf-8", errors="backslashreplace")


def class_folders(root: str) -> list[bytes]:
    """The folders directly below the root, in the order of their class numbers."""
    with os.scandir(os.fsencode(root)) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(b".") and entry.is_dir())


def _list_images(root: str, folders: Sequence[bytes]) -> tuple[PackedPaths, Int[np.ndarray, "c"]]:
    """The images' paths below the root, and where each class ends; raises ValueError if there are none."""
    counts = []

    def counted(found: list[bytes]) -> list[bytes]:
        counts.append(len(found))
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        listed = pool.map(_list_class, itertools.repeat(os.fsencode(root)), folders)
        paths = PackedPaths(map(counted, listed))
    if not len(paths):
        raise ValueError(
            f"data.shards: the class folders of {root} have no images, files that end in "
            f"{', '.join('.' + extension for extension in IMAGE_EXTENSIONS)}"
        )
    empty = [_text(folder) for folder, n in zip(folders, counts, strict=True) if not n]
    if empty:
        warnings.warn(
            f"data.shards: {len(empty)} of the {len(folders)} class folders of {root} have no images, the first of "
            f"them {empty[0]}; they keep their numbers",
            stacklevel=3,
        )
    return paths, np.cumsum(counts)


def _list_class(root: bytes, folder: bytes) -> list[bytes]:
    """All images of a class, in sorted order, as paths below the root."""
    found, pending = [], [folder + b"/"]
    while pending:
        below = pending.pop()
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.name.rpartition(b".")[2].lower() in EXTENSIONS:
                    found.append(below + entry.name)
                elif entry.is_dir():
                    pending.append(below + entry.name + b"/")
    return sorted(found)


def _image_sizes(root: str, paths: PackedPaths) -> Int[np.ndarray, "files 2"]:
    """(height, width) of each image; zeros where there is no readable header. Kept under `cache_root()`."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(root)) + b"\n" + paths.blob).hexdigest()
    cached = cache_root() / "image-sizes" / f"{digest[:16]}.npy"
    if cached.is_file():
        return np.load(cached)
    encoded = os.fsencode(root)

    def read(start: int) -> Int[np.ndarray, "part 2"]:
        numbers = range(start, min(start + HEADERS_AT_ONCE, len(paths)))
        files = (os.fsdecode(os.path.join(encoded, paths[n])) for n in numbers)
        return np.array([image_size(file) or (0, 0) for file in files], dtype=np.int32)

    with ThreadPoolExecutor(THREADS) as pool:
        sizes = np.concatenate([*pool.map(read, range(0, len(paths), HEADERS_AT_ONCE))])
    write_atomically(cached, lambda file: np.save(file, sizes))
    return sizes


def _filter(
    filters: Filters,
    sizes: Int[np.ndarray, "files 2"] | None,
    class_ends: Int[np.ndarray, "c"],
    names: Sequence[str],
) -> tuple[Bool[np.ndarray, "files"], Counter[str]]:
    """Which images stay, and how many were dropped for which reason."""
    kept = np.ones(class_ends[-1], dtype=bool)
    reasons: Counter[str] = Counter()
    if not filters.active and sizes is None:
        return kept, reasons
    starts = [0, *class_ends[:-1].tolist()]
    for name, start, end in zip(names, starts, class_ends.tolist(), strict=True):
        for file in range(start, end):
            reason = _drop_reason(filters, None if sizes is None else tuple(sizes[file].tolist()), name)
            if reason is not None:
                kept[file] = False
                reasons[reason] += 1
    return kept, reasons


def _drop_reason(filters: Filters, size: tuple[int, int] | None, name: str) -> str | None:
    if size == (0, 0):
        return str(SkipReason.CORRUPT_IMAGE)
    return filters.drop_reason({}, caption=name, size=lambda: size)
