"""Where the samples of a tar shard lie: one pass over its headers, also of a damaged one.

Reading sequentially, as tar libraries do, the first bad header hides everything behind it. Here the
pass goes on at the next header that is whole, so that damage costs the samples it hits and no more.
"""

import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from io import BufferedIOBase

import numpy as np
from jaxtyping import Int
from webdataset.tariterators import base_plus_ext

BLOCK = 512
MAGIC = b"ustar"
MAGIC_OFFSET = 257  # of the magic in a header
READ_AHEAD = 1 << 20  # bytes searched at a time for the next whole header
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class CompressedTarError(ValueError):
    """A compressed tar has no random access."""


@dataclass(frozen=True)
class TarIndex:
    """The samples of one shard, in its order.

    spans: first and last byte (exclusive) of each sample's files, headers included.
    damaged: places where headers could not be read, each of which may have cost samples.
    truncated: whether the tar stops before its end mark.
    """

    spans: Int[np.ndarray, "n 2"]
    damaged: int
    truncated: bool


@dataclass(frozen=True)
class _File:
    """A regular file of a tar: its name, and the bytes it takes with its headers."""

    name: str
    start: int
    end: int


class _Damage:
    """Bytes where a header was expected."""


class _Truncation:
    """The file stops where more was to come."""


def index_tar(file: BufferedIOBase) -> TarIndex:
    """Finds the samples of an uncompressed tar.

    A sample is a run of files whose names differ only in the extension, as webdataset has it.
    Raises CompressedTarError, with the kind, for a compressed tar.
    """
    head = file.read(6)
    kind = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    if kind:
        raise CompressedTarError(
            f"is compressed by {kind} and cannot be read in any order; unpack it to a plain .tar"
        )
    spans: list[tuple[int, int]] = []
    damaged, truncated = 0, False
    current: str | None = None
    for found in _walk(file):
        if isinstance(found, _File):
            key, extension = base_plus_ext(found.name)
            if key is None or extension is None or found.name.startswith("__"):
                continue
            if key == current:
                spans[-1] = (spans[-1][0], found.end)
            else:
                spans.append((found.start, found.end))
                current = key
        else:
            damaged += isinstance(found, _Damage)
            truncated |= isinstance(found, _Truncation)
    return TarIndex(np.array(spans, dtype=np.int64).reshape(-1, 2), damaged, truncated)


def _walk(file: BufferedIOBase) -> Iterator[_File | _Damage | _Truncation]:
    """Every file of a tar, and what is wrong with it, in order."""
    size = file.seek(0, 2)
    start = 0
    while True:
        stopped, searched = yield from _run(file, start, size)
        nonzero = _first_nonzero(file, stopped, size)
        if nonzero is None:  # the end mark
            if stopped >= size:
                yield _Truncation()
            return
        resumed = _next_header(file, searched, size)
        if resumed is None:
            yield _Truncation()
            return
        # One tar appended to another is no damage: only the first one's end mark lies between.
        if not (resumed == nonzero and nonzero - stopped >= BLOCK):
            yield _Damage()
        start = resumed


def _run(file: BufferedIOBase, start: int, size: int) -> Generator[_File, None, tuple[int, int]]:
    """The files from a header on, up to the first that cannot be read.

    Returns the place of that, and the one from which the next header is worth a search: if bytes of
    the last file are missing, it begins before the place where it is expected.
    """
    file.seek(start)
    searched = start + 1
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r")
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # they would pile up
            searched = member.offset_data
            if not member.isreg():
                continue
            if member.offset_data + member.size > size:
                return size, searched
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            yield _File(member.name, member.offset, min(end, size))
        return tar.offset, searched
    except (tarfile.TarError, ValueError, OSError, EOFError):
        return (start if searched == start + 1 else tar.offset), searched


def _next_header(file: BufferedIOBase, start: int, size: int) -> int | None:
    """The first place from `start` on where a whole header begins: any byte, since some may be missing."""
    for position in range(start, size, READ_AHEAD):
        file.seek(position)
        # Pieces overlap by a header, so that none is cut in two.
        piece = file.read(READ_AHEAD + BLOCK)
        found = piece.find(MAGIC, MAGIC_OFFSET)
        while found != -1:
            header = found - MAGIC_OFFSET
            if _is_header(piece[header : header + BLOCK]):
                return position + header
            found = piece.find(MAGIC, found + 1)
    return None


def _is_header(block: bytes) -> bool:
    """Whether the checksum holds."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _first_nonzero(file: BufferedIOBase, start: int, size: int) -> int | None:
    """The place of the first byte that is not zero."""
    for position in range(start, size, READ_AHEAD):
        file.seek(position)
        piece = file.read(min(READ_AHEAD, size - position))
        rest = piece.lstrip(b"\0")
        if rest:
            return position + len(piece) - len(rest)
    return None
