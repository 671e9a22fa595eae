"""Checksums of the rows of metrics.csv, in a hidden file beside it.

A row's checksum is a CRC-32 of all lines up to it, so that rows that were removed, repeated or exchanged are found
too. They are written before the rows, and those of replaced rows are dropped after them: a kill in between leaves
checksums without rows, and never rows without checksums.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path

from rfdit.storage.atomic import flush, naming, write_bytes


def sums_file(metrics: Path) -> Path:
    """The file of the checksums of a metrics.csv."""
    return metrics.with_name(f".{metrics.name}.sums")


def sums_of(lines: Iterable[bytes], *, before: int = 0) -> list[int]:
    """The checksum of each line. before: that of the line before them."""
    sums = []
    for line in lines:
        before = zlib.crc32(line, before)
        sums.append(before)
    return sums


def add_sums(metrics: Path, sums: Iterable[int]) -> None:
    """Append checksums of rows that are about to be written."""
    file = sums_file(metrics)
    with naming(file), file.open("ab") as opened:
        opened.write(_encoded(sums))


def replace_sums(metrics: Path, sums: Iterable[int]) -> None:
    """Keep the checksums of these rows alone."""
    write_bytes(sums_file(metrics), _encoded(sums), durable=True)


def sync_sums(metrics: Path) -> None:
    """Flush the checksums to the disk."""
    if sums_file(metrics).exists():
        flush(sums_file(metrics))


def check_rows(metrics: Path, data: bytes) -> bytes:
    """The whole lines in the bytes of a metrics.csv; without checksums, which other programs do not write, all of them.

    A last line without an end is one that a kill has cut.
    Raises ValueError, naming the line, for one that is not what was written.
    """
    try:
        known = set(sums_file(metrics).read_bytes().split())
    except FileNotFoundError:
        return data
    *lines, cut = data.split(b"\n")
    lines = [line + b"\n" for line in lines]
    if not lines or b"\0" in cut:  # the first line is written with its end, and no row has a zero byte
        raise ValueError(f"{metrics} is damaged: line {len(lines) + 1} is not what was written")
    for number, found in enumerate(sums_of(lines), 1):
        if _encoded([found]).strip() not in known:
            raise ValueError(f"{metrics} is damaged: line {number} is not what was written")
    return b"".join(lines)


def _encoded(sums: Iterable[int]) -> bytes:
    return b"".join(b"%08x\n" % each for each in sums)
