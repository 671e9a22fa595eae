"""`output=tar`: shards that webdataset and `data=laion` read."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from webdataset import TarWriter

from rfdit.counted import counted
from rfdit.generate.outputs.output import GeneratedImage, Job, open_resumable, ranges
from rfdit.image_grid import to_pil
from rfdit.limits import Count
from rfdit.storage.finished import is_finished, write_finished


class TarShards:
    """00000.tar and so on; a sample is KEY.png, KEY.txt (prompt) or KEY.cls (label), and KEY.json.

    images_per_shard: a run that is killed loses the shard that it was writing. SHARD.tar.json has the checksum of
        a shard that is finished.
    Equal requests give equal bytes. Memory holds one batch.
    """

    def __init__(self, *, images_per_shard: Count = 1000) -> None:
        if images_per_shard < 1:
            raise ValueError(f"output.images_per_shard={images_per_shard} must be at least 1")
        self.images_per_shard = images_per_shard

    def open(self, job: Job) -> None:
        open_resumable(job, images_per_shard=self.images_per_shard)

    def pieces(self, job: Job) -> list[Sequence[int]]:
        return ranges(len(job.sheet.specs), self.images_per_shard)

    def missing(self, job: Job, numbers: Sequence[int]) -> list[int]:
        return [number for number in numbers if not is_finished(self._shard(job, number))]

    def write(self, job: Job, number: int, images: Iterator[GeneratedImage]) -> None:
        def fill(file: BinaryIO) -> None:
            with TarWriter(file, encoder=False, mtime=0) as tar:
                for generated in images:
                    tar.write(_files(generated))

        write_finished(self._shard(job, number), fill)

    def close(self, job: Job) -> str:
        shards = len(self.pieces(job))
        return f"{counted(len(job.sheet.specs), 'image')} in {counted(shards, 'shard')} in {job.folder}"

    def _shard(self, job: Job, number: int) -> Path:
        return job.folder / f"{number:05d}.tar"


def _files(generated: GeneratedImage) -> dict[str, str | bytes]:
    """A sample as TarWriter takes it."""
    png = io.BytesIO()
    to_pil(generated.image).save(png, format="PNG", compress_level=1)  # 6 takes several times as long
    spec = generated.spec
    kind = "txt" if isinstance(spec.input, str) else "cls"
    record = json.dumps(spec.as_dict(), ensure_ascii=False)
    return {
        "__key__": f"{generated.index:08d}",
        "png": png.getvalue(),
        kind: str(spec.input).encode(),
        "json": record.encode(),
    }
