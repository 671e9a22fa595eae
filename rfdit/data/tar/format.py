"""The tar format: where the samples of a shard lie, and the files of one sample.

Tar libraries read sequentially, so the first bad header hides everything behind it. The scan here goes
on at the next intact header, so that damage costs only the samples that it hits.
"""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import numpy as np
from jaxtyping import Int

from rfdit.data.sample import MAX_SAMPLE, RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.tar.grouping import group_samples, is_sample_file

BLOCK = 512
MAGIC = b"ustar"
MAGIC_OFFSET = 257  # offset of the magic in a header
READ_AHEAD = 1 << 20  # bytes searched at a time for the next intact header
MAX_NAME = 1 << 20  # bytes of a header that holds a name or other metadata, which tarfile reads into memory
MAX_METADATA = 8  # such headers before a file, of which four have a use
METADATA = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class CompressedTarError(ValueError):
    """A compressed tar, which has no random access."""


@dataclass(frozen=True)
class TarScan:
    """The samples of one shard, in its order.

    spans: byte range of each sample's files, headers included; the end is exclusive.
    links: (sample, first byte, bytes) of the content of each hard link, which lies elsewhere, in the order of the
        samples and of the links in them.
    skipped: counts, by reason, of samples that cannot be read, of places where headers could not be read, each
        of which may have cost samples (DAMAGED_TAR), and of a missing end (TRUNCATED_TAR).
    """

    spans: Int[np.ndarray, "n 2"]
    links: Int[np.ndarray, "m 3"]
    skipped: Counter[str]


@dataclass(frozen=True)
class _File:
    """A file of a tar, and the bytes it takes with its headers.

    content: its first byte and its bytes; None for a link.
    target: the name of another file of the tar that a hard link repeats; None for any other file.
    """

    name: str
    start: int
    end: int
    content: tuple[int, int] | None
    target: str | None = None


class _BoundedTarInfo(tarfile.TarInfo):
    """A header that is an error if it claims more metadata than any name has, or follows too many others of the kind.

    tarfile reads a chain of them by recursion, and damage may start it again at each of its headers.
    """

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        before = getattr(tar, "metadata_headers", 0)
        tar.metadata_headers = before + 1 if self.type in METADATA else 0  # type: ignore[attr-defined]
        if self.type in METADATA and (self.size > MAX_NAME or before == MAX_METADATA):
            raise tarfile.ReadError("metadata of unlikely size")
        return super()._proc_member(tar)  # type: ignore[misc]


def scan_tar(file: BufferedIOBase) -> TarScan:
    """Find the samples of an uncompressed tar, which are runs of files as `group_samples` finds them.

    A hard link to an earlier file of the tar is as good as that file. A sample is counted, and has no span, if
    its files are not adjacent, or other links take the place of some. Files without an extension are counted as
    well, unless their names begin with a dot.
    Raises CompressedTarError, naming the compression, for a compressed tar.
    """
    head = file.read(6)
    kind = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    if kind:
        raise CompressedTarError(
            f"is compressed with {kind}, which allows no random access; unpack it to a plain .tar"
        )
    skipped: Counter[str] = Counter()

    def sample_files() -> Iterator[_File]:
        for found in _walk(file):
            if isinstance(found, SkipReason):
                skipped[found] += 1
            elif is_sample_file(found.name):
                yield found
            elif not found.name.startswith("__") and not found.name.rpartition("/")[2].startswith("."):
                skipped[SkipReason.NO_EXTENSION] += 1

    spans: list[tuple[int, int] | None] = []
    linked: dict[int, list[_File]] = {}  # the links of a sample
    runs: dict[str, list[tuple[int, frozenset[str]]]] = {}  # number and extensions of each run of a key
    for key, files in group_samples(sample_files(), lambda found: found.name):
        runs.setdefault(key, []).append((len(spans), frozenset(extension for extension, _ in files)))
        if links := [found for _, found in files if found.content is None]:
            linked[len(spans)] = links
        spans.append((files[0][1].start, files[-1][1].end))
    contents = _linked_contents(file, [link for links in linked.values() for link in links])
    broken = {n for n, links in linked.items() if any(link.start not in contents for link in links)}
    for several in runs.values():
        # Runs that have a file in common are samples of the same name, for example of two tars in one.
        if len(several) > 1 and sum(len(e) for _, e in several) == len(
            frozenset().union(*(e for _, e in several))
        ):
            skipped[SkipReason.SCATTERED_FILES] += 1
            for number, _ in several:
                spans[number] = None
    skipped[SkipReason.LINKED_FILE] += sum(spans[number] is not None for number in broken)
    whole = [number for number, span in enumerate(spans) if span is not None and number not in broken]
    rows = [(row, *contents[link.start]) for row, n in enumerate(whole) for link in linked.get(n, ())]
    return TarScan(
        spans=np.array([spans[number] for number in whole], dtype=np.int64).reshape(-1, 2),
        links=np.array(rows, dtype=np.int64).reshape(-1, 3),
        skipped=+skipped,
    )


def _linked_contents(file: BufferedIOBase, links: Sequence[_File]) -> dict[int, tuple[int, int]]:
    """The content of each hard link to an earlier file of the tar, by the offset of the link's header.

    The tar is read through once more, and only if it has such links, since their targets are not known before.
    """
    wanted = {link.target for link in links if link.target is not None}
    if not wanted:
        return {}
    found: dict[int, tuple[int, int]] = {}
    contents: dict[str, tuple[int, int]] = {}  # of the wanted files so far
    for each in _walk(file):
        if isinstance(each, SkipReason):
            continue
        content = each.content
        if content is None and each.target is not None and each.target in contents:
            content = found[each.start] = contents[each.target]
        if content is not None and (name := _plain(each.name)) in wanted:
            contents[name] = content
    return found


def _plain(name: str) -> str:
    """A name as it is compared with the target of a link."""
    return name.removeprefix("./")


def load_sample(
    descriptor: int, span: Int[np.ndarray, "2"], links: Int[np.ndarray, "m 3"], number: int
) -> RawSample:
    """A sample of an open shard.

    span: its own, and links: those of the whole shard, as `TarScan` has them. number: the sample's.
    Raises SkippedSampleError for more than `MAX_SAMPLE` bytes, for fewer than there should be, and if there is no
    sample, or it has a file twice.
    """
    first, last = np.searchsorted(links[:, 0], [number, number + 1]).tolist()
    own = links[first:last, 1:].tolist()
    size = int(span[1] - span[0]) + sum(size for _, size in own)
    if size > MAX_SAMPLE:
        raise SkippedSampleError(SkipReason.SAMPLE_TOO_LARGE, f"{size:,} bytes")
    start, end = span.tolist()
    contents = [read_sample(descriptor, at, at + size) for at, size in own]
    return parse_sample(read_sample(descriptor, start, end), contents)


def read_sample(descriptor: int, start: int, end: int) -> bytes:
    """The bytes of a sample in an open shard.

    Raises SkippedSampleError for more than `MAX_SAMPLE`, and for fewer than there should be.
    """
    if end - start > MAX_SAMPLE:
        raise SkippedSampleError(SkipReason.SAMPLE_TOO_LARGE, f"{end - start:,} bytes")
    data = os.pread(descriptor, end - start, start)
    if len(data) < end - start:
        raise SkippedSampleError(SkipReason.TRUNCATED_TAR)
    return data


def parse_sample(data: bytes, linked: Sequence[bytes] = ()) -> RawSample:
    """The sample in the bytes of a span. linked: the contents of its hard links, in their order.

    Raises SkippedSampleError if there is no sample, or it has a file twice.
    """
    try:
        key, files = next(group_samples(_files(data, iter(linked)), lambda found: found[0]))
    except StopIteration:
        raise SkippedSampleError(SkipReason.DAMAGED_TAR) from None
    except (tarfile.TarError, OSError, EOFError, RecursionError) as error:
        raise SkippedSampleError(SkipReason.DAMAGED_TAR, str(error)) from error
    sample: dict[str, str | bytes] = {"__key__": key}
    for extension, (name, content) in files:
        if extension in sample:
            raise SkippedSampleError(
                SkipReason.DUPLICATE_FILE, f"{name} has the same key and extension as another"
            )
        sample[extension] = content
    return sample


def _files(data: bytes, linked: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files of a sample; without copies of tarfile's, since all bytes are in memory."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", tarinfo=_BoundedTarInfo) as tar:
        for member in tar:
            if member.isreg() and is_sample_file(member.name):
                content = data[member.offset_data : member.offset_data + member.size]
                if len(content) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member.name, content
            elif member.islnk() and is_sample_file(member.name):
                if (content_elsewhere := next(linked, None)) is None:
                    raise tarfile.ReadError("a link that the index does not know")
                yield member.name, content_elsewhere


def _walk(file: BufferedIOBase) -> Iterator[_File | SkipReason]:
    """Every file of a tar, and every fault, in order."""
    size = file.seek(0, 2)
    start = origin = 0
    while True:
        stopped, searched = yield from _intact_run(file, start, size)
        nonzero = _first_nonzero(file, stopped, size)
        if nonzero is None:  # the end mark
            if stopped >= size:
                yield SkipReason.TRUNCATED_TAR
            return
        resumed = _next_header(file, searched, size)
        if resumed is None:
            yield SkipReason.TRUNCATED_TAR
            return
        # One tar appended to another is not damage: only the first one's end mark lies between.
        if resumed == nonzero and _is_end_mark(stopped - origin, nonzero - origin):
            origin = resumed
        else:
            yield SkipReason.DAMAGED_TAR
        start = resumed


def _is_end_mark(start: int, end: int) -> bool:
    """True for zeros that end a tar: two blocks, filled up to a whole record or not. Damage may leave others.

    start, end: counted from the tar's beginning.
    """
    return end - start == 2 * BLOCK or (end - start > 2 * BLOCK and end % tarfile.RECORDSIZE == 0)


def _intact_run(file: BufferedIOBase, start: int, size: int) -> Generator[_File, None, tuple[int, int]]:
    """The files from a header on, up to the first that cannot be read.

    Returns the offset where that one begins, and the offset from which to search for the next header: if
    bytes of the last file are missing, that header lies before its expected place.
    """
    file.seek(start)
    searched = start + 1
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", tarinfo=_BoundedTarInfo)
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # they would pile up
            searched = member.offset_data
            if member.islnk() or member.issym():
                target = _plain(member.linkname) if member.islnk() else None
                yield _File(member.name, member.offset, member.offset_data, None, target)
            if not member.isreg():
                continue
            if member.offset_data + member.size > size:
                return size, searched
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            yield _File(member.name, member.offset, min(end, size), (member.offset_data, member.size))
        return tar.offset, searched
    except (tarfile.TarError, ValueError, OSError, EOFError, RecursionError):
        return (start if searched == start + 1 else tar.offset), searched


def _next_header(file: BufferedIOBase, start: int, size: int) -> int | None:
    """The first offset from `start` on where an intact header begins: any byte, since some may be missing."""
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
    """Test the checksum of a header."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _first_nonzero(file: BufferedIOBase, start: int, size: int) -> int | None:
    """The offset of the first byte that is not zero."""
    for position in range(start, size, READ_AHEAD):
        file.seek(position)
        piece = file.read(min(READ_AHEAD, size - position))
        rest = piece.lstrip(b"\0")
        if rest:
            return position + len(piece) - len(rest)
    return None
