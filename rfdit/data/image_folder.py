"""Class-conditional images as a tree of files, root/CLASS/**/*.jpg: ImageNet as it is unpacked."""

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from rfdit.counted import counted
from rfdit.data.captioned.files import FileSource, ListedImages
from rfdit.data.class_names import class_folders, read_class_names
from rfdit.data.contents import contents_of
from rfdit.data.filters import Filters
from rfdit.data.image_files import (
    ENDINGS,
    EXTENSIONS,
    THREADS,
    PackedBytes,
    extension_of,
    list_images,
    readable,
    warn_of_other_files,
)
from rfdit.data.skips import SkipReason, listed
from rfdit.limits import Count
from rfdit.processes.rank import is_rank_zero


class ImageFolder:
    """Opens a tree whose first level of folders are the classes, numbered in sorted order.

    That is the numbering of torchvision and of ImageNet. Folders and files whose names begin with a dot
    are left out; files with other suffixes than those of images, and images outside of the class folders, are
    counted. All files are one logical shard, so that classes mix.

    names: file of readable names, as for `read_class_names`; None is the folders' names.
    num_classes: the required number of folders, that of the model; None is any number.

    Every opening lists the tree: 100,000 files take 0.3 s on a local disk. Filters by size and
    aspect-ratio buckets need the images' headers, 100,000 of which take 5 s. They are read once and
    cached under `cache_root()` until a file is added, removed or renamed; an image that is replaced under
    the same name goes unnoticed.
    """

    suffixes = ()

    def __init__(self, *, names: str | None = None, num_classes: Count | None = None) -> None:
        self.names, self.num_classes = names, num_classes
        self._classes: list[str] | None = None  # class folders of the tree that was opened first

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> FileSource:
        """The images of the one tree in `shards`.

        Raises ValueError if it is not a tree of classes, has another number of classes, a class without
        a name, or no image that passes the filters.
        """
        root = self._root(shards)
        folders = class_folders(root)
        if not folders:
            raise ValueError(
                f"data.shards: {root} has no class folders, of which data=imagenet reads root/CLASS/*.jpg; it holds "
                f"{contents_of(root)}"
            )
        classes = [readable(folder) for folder in folders]
        if self.num_classes not in (None, len(folders)):
            raise ValueError(
                f"data.shards: {root} has {counted(len(folders), 'class folder')}, {classes[0]} to {classes[-1]}, and "
                f"conditioner.num_classes={self.num_classes}; give conditioner.num_classes={len(folders)}"
            )
        if self._classes not in (None, classes):
            raise ValueError(
                f"data.val_shards: {root} has other class folders than data.shards, so its classes have other numbers"
            )
        self._classes = names = classes
        if self.names is not None:
            names = read_class_names(self.names, setting="data.reader.names", folders=classes)
        paths, class_ends, left_out = _list_images(root, folders)
        remark = (
            f"captions are the names of the class folders, such as {classes[0]}: give readable ones as "
            f"data.reader.names=FILE, or train on classes with model=dit conditioner=labels "
            f"conditioner.num_classes={len(classes)}"
        )
        labels = _Labels(names, class_ends)
        images = ListedImages(
            root, paths, labels.about, left_out, labels, caption_remark=remark if self.names is None else None
        )
        return FileSource(images, filters=filters, image_sizes=image_sizes)

    @staticmethod
    def _root(shards: Sequence[str]) -> str:
        if len(shards) == 1 and os.path.isdir(root := os.path.expanduser(shards[0])):
            return root
        given = shards[0] if len(shards) == 1 else f"{len(shards)} paths, the first of them {shards[0]},"
        raise ValueError(
            f"data.shards: {given} is not one folder; data=imagenet reads a tree root/CLASS/*.jpg; for tar "
            "shards use data=imagenet_wds"
        )


@dataclass(frozen=True)
class _Labels:
    """The class of an image by its number. class_ends: the number after the last image of each class."""

    names: Sequence[str]
    class_ends: Int[np.ndarray, "c"]

    def __call__(self, number: int) -> int:
        return int(np.searchsorted(self.class_ends, number, side="right"))

    def about(self, number: int) -> dict[str, Any]:
        return {"captions": [self.names[self(number)]]}


def _list_images(
    root: str, folders: Sequence[bytes]
) -> tuple[PackedBytes, Int[np.ndarray, "c"], Counter[str]]:
    """The images' paths below the root, the end of each class, and counts of files that are left out.

    Raises ValueError if there are no images.
    """
    counts, suffixes, others = [], Counter[str](), Counter[str]()

    def noted(found: tuple[list[bytes], Counter[str]]) -> list[bytes]:
        counts.append(len(found[0]))
        suffixes.update(Counter(f".{readable(extension_of(path))}" for path in found[0]))
        others.update(found[1])
        return found[0]

    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(list_images, itertools.repeat(os.fsencode(root)), folders)
        paths = PackedBytes(map(noted, found))
    if not len(paths):
        raise ValueError(
            f"data.shards: the class folders of {root} have no images, files that end in "
            f"{ENDINGS}, but {listed(others) or 'no file'}"
        )
    if is_rank_zero():
        images, classes = counted(len(paths), "image"), counted(len(folders), "class", "classes")
        print(f"{root} has {images} of {classes}: {listed(suffixes)}", flush=True)
    warn_of_other_files(others, f"data.shards: {root}")
    with os.scandir(os.fsencode(root)) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(b".")]
    outside = sum(extension_of(entry.name) in EXTENSIONS and not entry.is_dir() for entry in shown)
    left_out: Counter[str] = Counter(
        {SkipReason.UNKNOWN_SUFFIX: others.total(), SkipReason.MISSING_LABEL: outside}
    )
    empty = [readable(folder) for folder, n in zip(folders, counts, strict=True) if not n]
    if empty:
        warnings.warn(
            f"data.shards: {len(empty)} of the {len(folders)} class folders of {root} have no images, the first of "
            f"them {empty[0]}; they keep their numbers",
            stacklevel=3,
        )
    return paths, np.cumsum(counts), +left_out
