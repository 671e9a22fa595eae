"""Writing one tar shard, whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path

from webdataset import TarWriter

from rfdit.data.sample import RawSample
from rfdit.data.sidecar import write_sidecar


def write_tar(path: Path, samples: Iterable[RawSample]) -> int:
    """Writes samples to a shard that gets its name when it is complete, and its index; returns how many.

    There is no shard without samples. Equal samples give equal bytes.
    """
    # Of this process: two that pack the same do no harm.
    part, count = path.with_name(f".{path.name}.{os.getpid()}.part"), 0
    try:
        with part.open("wb") as file:
            with TarWriter(file, encoder=False, mtime=0) as tar:
                for sample in samples:
                    tar.write(dict(sample))
                    count += 1
            file.flush()
            os.fsync(file.fileno())
        if count:
            part.replace(path)
            write_sidecar(path)
    finally:
        part.unlink(missing_ok=True)
    return count
