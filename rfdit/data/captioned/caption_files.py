"""Folders of images with a text file beside each: NAME.jpg and NAME.txt, optionally NAME.json."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rfdit.data.captioned.files import ListedImages
from rfdit.data.image_files import EXTENSIONS, PackedBytes, extension_of, list_files, suffix_in_words
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.storage.text import decode_text, parse_json, text_lines


def list_captioned(root: str, *, needs_captions: bool, by_line: bool) -> tuple[ListedImages, Counter[str]]:
    """(the images below a folder that have a NAME.txt beside them, counts of its other files by suffix).

    needs_captions: False takes images without a text too.
    by_line: every line of a text is a caption of its own.
    Images without a text are counted as missing_caption, texts without an image as missing_image, and other
    files as unknown_suffix.
    """
    images, others = list[bytes](), Counter[str]()
    beside: dict[bytes, dict[bytes, bytes]] = {b"txt": {}, b"json": {}}  # paths by what precedes their suffix
    for path in list_files(os.fsencode(root)):
        extension = extension_of(path)
        if extension in EXTENSIONS:
            images.append(path)
        elif extension in beside:
            same = beside[extension].setdefault(_stem(path), path)
            beside[extension][_stem(path)] = max(same, path)  # of NAME.TXT and NAME.txt, the latter
        else:
            others[suffix_in_words(extension)] += 1
    texts, metadata = beside[b"txt"].keys(), beside[b"json"].keys()
    chosen = sorted(path for path in images if not needs_captions or _stem(path) in texts)
    stems = set(map(_stem, images))
    left_out = Counter(
        {
            SkipReason.MISSING_CAPTION: len(images) - len(chosen),
            SkipReason.MISSING_IMAGE: len(texts - stems),
            SkipReason.UNKNOWN_SUFFIX: others.total() + len(metadata - stems),
        }
    )
    paths = PackedBytes([chosen])
    spelled = {
        usual: path
        for extension, found in beside.items()
        for stem, path in found.items()
        if (usual := stem + b"." + extension) != path
    }
    about = _FilesBeside(os.fsencode(root), paths, by_line, needs_captions, bool(metadata), spelled)
    return ListedImages(root, paths, about, Counter({str(k): n for k, n in (+left_out).items()})), others


def _stem(path: bytes) -> bytes:
    return path.rpartition(b".")[0]


@dataclass(frozen=True)
class _FilesBeside:
    """The metadata of an image by its number, from the files beside it.

    spelled: paths of files with capitals in their suffix, by the path with a suffix in lower case.
    """

    root: bytes
    paths: PackedBytes
    by_line: bool
    needs_captions: bool
    has_metadata: bool
    spelled: Mapping[bytes, bytes]

    def __call__(self, number: int) -> dict[str, Any]:
        stem = _stem(self.paths[number])
        about = self._metadata(stem) if self.has_metadata else {}
        try:
            text = self._text(stem + b".txt").strip()
        except FileNotFoundError as error:
            if self.needs_captions:
                raise SkippedSampleError(SkipReason.MISSING_CAPTION, str(error)) from None
            return about
        return about | {"captions": text_lines(text) if self.by_line and text else [text]}

    def _metadata(self, stem: bytes) -> dict[str, Any]:
        try:
            found = parse_json(self._text(stem + b".json"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise SkippedSampleError(SkipReason.CORRUPT_METADATA, str(error)) from None
        return found if isinstance(found, dict) else {}

    def _text(self, usual: bytes) -> str:
        path = os.path.join(self.root, self.spelled.get(usual, usual))
        try:
            with open(path, "rb") as file:
                return decode_text(file.read())
        except ValueError as error:
            raise SkippedSampleError(SkipReason.NOT_UTF8, f"{os.fsdecode(path)} {error}") from None
