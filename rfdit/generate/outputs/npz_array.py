"""`output=npz`: one array of all images, as ADM's evaluation reads it (github.com/openai/guided-diffusion)."""

import io
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rfdit.counted import counted
from rfdit.generate.outputs.output import GeneratedImage, Job, open_resumable, ranges
from rfdit.generate.uses.use import inputs_of
from rfdit.limits import Count
from rfdit.storage.atomic import remove_abandoned
from rfdit.storage.finished import is_finished, write_finished

NAME = "samples.npz"
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # zip's earliest date: equal images give equal bytes


class NpzArray:
    """samples.npz with `arr_0`, uint8 (N, H, W, 3), and for class labels `arr_1`, int64 (N,).

    images_per_part: parts/ holds images until all are there; a run that is killed loses the part that it
        was writing.
    Memory holds one batch; the disk needs room for the images twice.
    """

    def __init__(self, *, images_per_part: Count = 1000) -> None:
        if images_per_part < 1:
            raise ValueError(f"output.images_per_part={images_per_part} must be at least 1")
        self.images_per_part = images_per_part

    def open(self, job: Job) -> None:
        open_resumable(job, images_per_part=self.images_per_part)
        remove_abandoned(job.folder / "parts")

    def pieces(self, job: Job) -> list[Sequence[int]]:
        return ranges(len(job.sheet.specs), self.images_per_part)

    def missing(self, job: Job, numbers: Sequence[int]) -> list[int]:
        if is_finished(job.folder / NAME):
            return []
        return [number for number in numbers if not is_finished(self._part(job, number))]

    def write(self, job: Job, number: int, images: Iterator[GeneratedImage]) -> None:
        """Writes a part as an array of its own."""
        n = len(self.pieces(job)[number])

        def fill(file: BinaryIO) -> None:
            for k, generated in enumerate(images):
                array = generated.image.permute(1, 2, 0).contiguous().numpy()
                if k == 0:
                    file.write(_header((n, *array.shape)))
                file.write(array.tobytes())

        write_finished(self._part(job, number), fill)

    def close(self, job: Job) -> str:
        target, parts = job.folder / NAME, job.folder / "parts"
        if not is_finished(target):
            write_finished(target, lambda file: self._join(job, file))
        shutil.rmtree(parts, ignore_errors=True)  # not there if an earlier run got this far
        return f"{counted(len(job.sheet.specs), 'image')} in {target}"

    def _join(self, job: Job, file: BinaryIO) -> None:
        specs = job.sheet.specs
        with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            with archive.open(zipfile.ZipInfo("arr_0.npy", LONG_AGO), "w", force_zip64=True) as array:
                for number in range(len(self.pieces(job))):
                    with self._part(job, number).open("rb") as part:
                        _, *size = _read_header(part)
                        if number == 0:
                            array.write(_header((len(specs), *size)))
                        shutil.copyfileobj(part, array, 1 << 20)
            if not isinstance(specs[0].input, str):
                with archive.open(zipfile.ZipInfo("arr_1.npy", LONG_AGO), "w") as array:
                    labels = np.array(inputs_of(specs), dtype=np.int64)
                    np.lib.format.write_array(array, labels)

    def _part(self, job: Job, number: int) -> Path:
        return job.folder / "parts" / f"{number:05d}.npy"


def _header(shape: tuple[int, ...]) -> bytes:
    """The header of a uint8 array's .npy file."""
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()


def _read_header(file: BinaryIO) -> tuple[int, ...]:
    """Reads past a header; returns the shape that it states."""
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)[0]
