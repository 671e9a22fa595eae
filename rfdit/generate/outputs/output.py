"""The protocol behind `output=...`: images are written in pieces, each of them whole or not at all.

What a later start takes over (`request.json` and the pieces) has checksums, as in `rfdit.storage.finished`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from rfdit.differences import differences
from rfdit.generate.request import ContactSheet, ImageSpec, SampleRequest
from rfdit.generate.uses.use import Use
from rfdit.sampler import Solver, StochasticSolver
from rfdit.storage.atomic import remove_abandoned
from rfdit.storage.checked import DamagedFileError, read_checked_json, write_checked_json
from rfdit.storage.folders import make_folder

RECORD = "request.json"


@dataclass(frozen=True)
class GeneratedImage:
    """An image, or its latent for an output of latents, with its specification; index: its place on the sheet."""

    index: int
    spec: ImageSpec
    image: UInt8[Tensor, "3 H W"] | Float[Tensor, "c h w"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """The images of a folder, with all that outputs need.

    settings: all that the images depend on, as plain data, for their record.
    command: the shell command that continues it.
    setting: the setting that chose the folder, for messages.
    """

    folder: Path
    sheet: ContactSheet
    use: Use
    settings: dict[str, Any]
    batch_size: int
    setting: str = "out"
    command: str = ""


@runtime_checkable
class Output(Protocol):
    """Writes the images of a job. Pieces are numbered alike in every process."""

    def open(self, job: Job) -> None:
        """Prepares the folder, before anything is sampled; raises ValueError if it holds other images."""
        ...

    def pieces(self, job: Job) -> list[Sequence[int]]:
        """The images' indices, piece by piece; a piece is written by one process."""
        ...

    def missing(self, job: Job, numbers: Sequence[int]) -> list[int]:
        """The pieces among these that no earlier start has written, or that are not whole; reads all others."""
        ...

    def write(self, job: Job, number: int, images: Iterator[GeneratedImage]) -> None:
        """Writes a piece while its images are generated."""
        ...

    def close(self, job: Job) -> str:
        """Completes the folder after the last piece; returns a sentence that says where the images are."""
        ...


@runtime_checkable
class TakesLatents(Protocol):
    """An `Output` of latents that are not decoded; settings of its jobs have them under `latents`."""

    def check_pairs(self, use: Use, request: SampleRequest, solver: Solver | StochasticSolver) -> None:
        """Raises ValueError if the images are not a deterministic function of their noise alone."""
        ...


def ranges(n: int, size: int) -> list[Sequence[int]]:
    """0 to n - 1 in pieces of `size`."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def open_resumable(job: Job, **more: Any) -> None:
    """Writes the record of a job, or compares it with the one of the run that it resumes.

    Removes what a killed run left unfinished.
    Raises ValueError, naming the differences, if the folder holds other images, or its record is damaged.
    """
    make_folder(job.folder, setting=job.setting)
    path = job.folder / RECORD
    mine = json.loads(json.dumps(job.settings | more))
    if path.exists():
        try:
            theirs = read_checked_json(path)
        except DamagedFileError as error:
            raise ValueError(
                f"{job.setting}={job.folder} cannot be continued: {error}; remove it, or give another {job.setting}"
            ) from None
        if different := [difference.text("now") for difference in differences(theirs, mine)]:
            raise ValueError(
                f"{job.setting}={job.folder} holds images of other settings: {', '.join(different)}; use those, or "
                f"give another {job.setting}"
            )
    else:
        write_checked_json(path, mine)
    remove_abandoned(job.folder)
