"""`output=npz`: one array of all pictures, as ADM's evaluation reads it (github.com/openai/guided-diffusion)."""

import io
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rfdit.data.unfinished_files import remove_abandoned, write_locked
from rfdit.sampling.output import Job, Made, ranges
from rfdit.sampling.record import agree

NAME = "samples.npz"
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # zip's earliest date: equal pictures give equal bytes


class NpzArray:
    """samples.npz with `arr_0`, uint8 (N, H, W, 3), and for class labels `arr_1`, int64 (N,).

    pictures_per_part: parts/ holds pictures until all are there; a run that is killed does the part at
        hand again.
    Memory is that of a batch; the disk needs room for the pictures twice.
    """

    def __init__(self, *, pictures_per_part: int = 1000) -> None:
        if pictures_per_part < 1:
            raise ValueError(f"output.pictures_per_part={pictures_per_part} must be at least 1")
        self.pictures_per_part = pictures_per_part

    def open(self, job: Job) -> None:
        agree(job, pictures_per_part=self.pictures_per_part)
        remove_abandoned(job.folder / "parts")

    def pieces(self, job: Job) -> list[Sequence[int]]:
        return ranges(len(job.request.pictures), self.pictures_per_part)

    def finished(self, job: Job, number: int) -> bool:
        return (job.folder / NAME).exists() or self._part(job, number).exists()

    def write(self, job: Job, number: int, made: Iterator[Made]) -> None:
        """A part is an array of its own."""
        n = len(self.pieces(job)[number])

        def fill(file: BinaryIO) -> None:
            for k, one in enumerate(made):
                array = one.image.permute(1, 2, 0).contiguous().numpy()
                if k == 0:
                    file.write(_header((n, *array.shape)))
                file.write(array.tobytes())

        write_locked(self._part(job, number), fill)

    def close(self, job: Job) -> str:
        target, parts = job.folder / NAME, job.folder / "parts"
        if not target.exists():
            write_locked(target, lambda file: self._join(job, file))
        shutil.rmtree(parts, ignore_errors=True)  # gone already, if an earlier run came so far
        return f"{len(job.request.pictures):,} pictures in {target}"

    def _join(self, job: Job, file: BinaryIO) -> None:
        pictures = job.request.pictures
        with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            with archive.open(zipfile.ZipInfo("arr_0.npy", LONG_AGO), "w", force_zip64=True) as array:
                for number in range(len(self.pieces(job))):
                    with self._part(job, number).open("rb") as part:
                        _, *size = _read_header(part)
                        if number == 0:
                            array.write(_header((len(pictures), *size)))
                        shutil.copyfileobj(part, array, 1 << 20)
            if not isinstance(pictures[0].given, str):
                with archive.open(zipfile.ZipInfo("arr_1.npy", LONG_AGO), "w") as array:
                    labels = np.array([picture.given for picture in pictures], dtype=np.int64)
                    np.lib.format.write_array(array, labels)

    def _part(self, job: Job, number: int) -> Path:
        return job.folder / "parts" / f"{number:05d}.npy"


def _header(shape: tuple[int, ...]) -> bytes:
    """What stands before the bytes of a uint8 array."""
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()


def _read_header(file: BinaryIO) -> tuple[int, ...]:
    """The shape that a header tells; the file stands behind it then."""
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)[0]
