"""Whether what is read is what was written: CRC-32, which any change of up to 32 bits in a row fails.

Archives of torch.save carry one for each record, of which torch's own reader takes no notice.
"""

import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 1 << 22  # bytes read at a time


def crc32_of(file: Path) -> int:
    """Of a file's bytes, whatever its size."""
    crc = 0
    with file.open("rb", buffering=0) as opened:
        while chunk := opened.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def crc32_of_tensor(tensor: Tensor, before: int = 0) -> int:
    """Of a tensor's values on the CPU. before: that of what comes before it."""
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, before)


def changed_record(archive: Path, *, tensors: bool = True) -> str | None:
    """The first record of an archive of torch.save that does not hold what was written.

    tensors: False leaves those out; what remains is small.
    Raises zipfile.BadZipFile, or what else zipfile finds to say, for what is no archive.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            records = [record for record in opened.infolist() if tensors or "/data/" not in record.filename]
            return next((record.filename for record in records if _is_changed(opened, record)), None)
    except ValueError as error:  # names that are no text
        raise zipfile.BadZipFile(str(error)) from None


def _is_changed(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as opened:
            while opened.read(CHUNK):
                pass
    except zipfile.BadZipFile:  # which it raises at the end of a record with another checksum
        return True
    return False
