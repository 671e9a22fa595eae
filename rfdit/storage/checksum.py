"""Checksums that tell whether a file is unchanged: CRC-32, BLAKE2b and SHA-256.

CRC-32 detects every change of up to 32 bits in a row. Archives of torch.save carry one for each record,
which torch's own reader does not check.
"""

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

CHUNK = 1 << 22  # bytes read at a time


def blake2b_of(file: BinaryIO) -> str:
    """The 16-byte BLAKE2b of a whole open file, hexadecimal; leaves the file at its beginning."""
    file.seek(0)
    digest = hashlib.file_digest(cast(Any, file), lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    file.seek(0)
    return digest


def blake2b_at(path: Path) -> str:
    """`blake2b_of` the file at a path."""
    with path.open("rb") as file:
        return blake2b_of(file)


def sha256_of(file: Path | str) -> str:
    """SHA-256 of the bytes of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def json_digest(data: Any, *, digits: int) -> str:
    """The first hexadecimal digits of the SHA-256 of plain data, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:digits]


def crc32_of(file: Path) -> int:
    """The CRC-32 of a file of any size."""
    crc = 0
    with file.open("rb", buffering=0) as opened:
        while chunk := opened.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def crc32_of_tensor(tensor: Tensor, before: int = 0) -> int:
    """The CRC-32 of a CPU tensor's values. before: the CRC-32 of the bytes before it."""
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, before)


def changed_record(archive: Path, *, tensors: bool = True) -> str | None:
    """The name of the first record of a torch.save archive whose bytes have changed; None if none has.

    tensors: also check the tensors; the other records are small.
    Raises zipfile.BadZipFile, or another error of zipfile, for a file that is not an archive.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            records = [record for record in opened.infolist() if tensors or "/data/" not in record.filename]
            return next((record.filename for record in records if _is_changed(opened, record)), None)
    except ValueError as error:  # names that are not text
        raise zipfile.BadZipFile(str(error)) from None


def _is_changed(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as opened:
            while opened.read(CHUNK):
                pass
    except zipfile.BadZipFile:  # which it raises at the end of a record with another checksum
        return True
    return False
