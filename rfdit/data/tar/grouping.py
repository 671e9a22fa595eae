"""The names of a shard's files: which files are one sample, and what each of them is in it."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from webdataset.tariterators import base_plus_ext

from rfdit.data.pixels import IMAGE_EXTENSIONS

T = TypeVar("T")


def is_sample_file(name: str) -> bool:
    """True for a name with a key and an extension; webdataset's own files begin with two underscores."""
    return base_plus_ext(name)[0] is not None and not name.startswith("__")


def group_samples(files: Iterable[T], name: Callable[[T], str]) -> Iterator[tuple[str, list[tuple[str, T]]]]:
    """(key, its files with their extensions in lower case) of each run of files of one sample, in order.

    As in webdataset, a sample's files are adjacent, and their names differ only in what follows the first dot:
    KEY.jpg, KEY.txt, KEY.seg.png. But many sets have dots in their keys (cat.0.jpg, cat.0.txt, cat.1.jpg). A
    part between dots therefore belongs to the key, and not to the extension,

    - if no file of the key has a plain extension, and some part has several files or all have the same
      (cat.0.jpg, cat.0.txt), or
    - if the files of a part have counterparts with plain extensions, and are several or numbered (a.jpg, a.txt,
      a.b.jpg, a.b.txt).

    name: the name of a file; all are such as `is_sample_file` accepts.
    """
    split = ((*base_plus_ext(name(file)), file) for file in files)
    for base, group in itertools.groupby(split, key=lambda each: each[0]):
        members = [(extension, file) for _, extension, file in group]
        names = _split_keys(base, [extension for extension, _ in members])
        runs = zip(names, members, strict=True)
        for key, run in itertools.groupby(runs, key=lambda each: each[0][0]):
            yield key, [(extension, file) for (_, extension), (_, file) in run]


def _split_keys(base: str, extensions: Sequence[str]) -> list[tuple[str, str]]:
    """(key, extension) of adjacent files whose names are equal before the first dot."""
    if not any("." in extension for extension in extensions):
        return [(base, extension.lower()) for extension in extensions]
    kinds: dict[str, set[str]] = {}  # of the files of each part; images of all formats are one kind
    for extension in extensions:
        part, _, last = extension.rpartition(".")
        kinds.setdefault(part, set()).add("image" if last.lower() in IMAGE_EXTENSIONS else last.lower())
    plain = kinds.pop("", None)
    if plain is None:
        several = any(len(each) > 1 for each in kinds.values())
        keys = set(kinds) if several or len(set(map(frozenset, kinds.values()))) == 1 else set()
    else:
        keys = {
            part
            for part, each in kinds.items()
            if each <= plain and (len(each) > 1 or part.replace(".", "").isdigit())
        }
    found = []
    for extension in extensions:
        part, _, last = extension.rpartition(".")
        found.append((f"{base}.{part}", last.lower()) if part in keys else (base, extension.lower()))
    return found
