"""Tar shards written atomically, with their sidecars."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from webdataset import TarWriter

from rfdit.data.sample import RawSample
from rfdit.data.tar.sidecar import SUFFIX, write_sidecar
from rfdit.storage.atomic import write_atomically


class _NoSamplesError(Exception):
    """A shard without samples, which is not written."""


def write_tar(path: Path, samples: Iterable[RawSample]) -> int:
    """Write samples to a shard, which gets its name when it is complete, and its sidecar; returns their number.

    Without samples there is no shard, and one of an earlier attempt is removed. Equal samples give
    equal bytes. `remove_abandoned` removes the unfinished files of killed writers.
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
        write_atomically(path, write, durable=True)
    except _NoSamplesError:
        path.unlink(missing_ok=True)
        path.with_name(path.name + SUFFIX).unlink(missing_ok=True)
        return 0
    write_sidecar(path)
    return count
