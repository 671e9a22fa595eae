"""Writing one tar shard, whole or not at all."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from webdataset import TarWriter

from rfdit.data.sample import RawSample
from rfdit.data.sidecar import SUFFIX, write_sidecar
from rfdit.data.unfinished_files import write_locked


class _NoSamplesError(Exception):
    """Nothing to write."""


def write_tar(path: Path, samples: Iterable[RawSample]) -> int:
    """Writes samples to a shard that gets its name when it is complete, and its index; returns how many.

    There is no shard without samples: one that a killed attempt left is removed. Equal samples give
    equal bytes. What killed writers leave unfinished, `remove_abandoned` removes.
    """
    count = 0

    def write(file: BinaryIO) -> None:
        nonlocal count
        with TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples:
                tar.write(dict(sample))
                count += 1
        if not count:
            raise _NoSamplesError

    try:
        write_locked(path, write)
    except _NoSamplesError:
        path.unlink(missing_ok=True)
        path.with_name(path.name + SUFFIX).unlink(missing_ok=True)
        return 0
    write_sidecar(path)
    return count
