"""`output=tar`: shards that webdataset and `data=laion` read."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from webdataset import TarWriter

from rfdit.data.unfinished_files import write_locked
from rfdit.grid import to_pil
from rfdit.sampling.output import Job, Made, ranges
from rfdit.sampling.record import agree


class TarShards:
    """00000.tar and so on; a sample is KEY.png, KEY.txt (prompt) or KEY.cls (label), and KEY.json.

    pictures_per_shard: a run that is killed does the shard at hand again.
    Equal requests give equal bytes. Memory is that of a batch.
    """

    def __init__(self, *, pictures_per_shard: int = 1000) -> None:
        if pictures_per_shard < 1:
            raise ValueError(f"output.pictures_per_shard={pictures_per_shard} must be at least 1")
        self.pictures_per_shard = pictures_per_shard

    def open(self, job: Job) -> None:
        agree(job, pictures_per_shard=self.pictures_per_shard)

    def pieces(self, job: Job) -> list[Sequence[int]]:
        return ranges(len(job.request.pictures), self.pictures_per_shard)

    def finished(self, job: Job, number: int) -> bool:
        return self._shard(job, number).exists()

    def write(self, job: Job, number: int, made: Iterator[Made]) -> None:
        def fill(file: BinaryIO) -> None:
            with TarWriter(file, encoder=False, mtime=0) as tar:
                for one in made:
                    tar.write(_files(one))

        write_locked(self._shard(job, number), fill)

    def close(self, job: Job) -> str:
        shards = len(self.pieces(job))
        return f"{len(job.request.pictures):,} pictures in {shards} shards in {job.folder}"

    def _shard(self, job: Job, number: int) -> Path:
        return job.folder / f"{number:05d}.tar"


def _files(one: Made) -> dict[str, str | bytes]:
    """A sample as TarWriter takes it."""
    png = io.BytesIO()
    to_pil(one.image).save(png, format="PNG", compress_level=1)  # 6 takes several times as long
    given = one.picture.given
    shown = {"txt": given.encode()} if isinstance(given, str) else {"cls": str(given).encode()}
    about = json.dumps(one.picture.as_dict(), ensure_ascii=False).encode()
    return {"__key__": f"{one.index:08d}", "png": png.getvalue(), **shown, "json": about}
