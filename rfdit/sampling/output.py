"""What `output=...` offers: where pictures go, in pieces that are there whole or not at all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from rfdit.sampling.request import Picture, Request
from rfdit.sampling.use import Use


@dataclass(frozen=True)
class Made:
    """A picture that has been made. index: its place in the request."""

    index: int
    picture: Picture
    image: UInt8[Tensor, "3 H W"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all outputs need to know.

    folder: where to write. settings: how the pictures are made, as plain data, for their record.
    """

    folder: Path
    request: Request
    use: Use
    settings: dict[str, Any]
    batch_size: int


@runtime_checkable
class Output(Protocol):
    """Writes the pictures of a job. Pieces are numbered, and every process sees the same."""

    def open(self, job: Job) -> None:
        """Before anything is sampled; raises ValueError for a folder that holds other pictures."""
        ...

    def pieces(self, job: Job) -> list[Sequence[int]]:
        """The pictures' indices, piece by piece; a piece is made by one process."""
        ...

    def finished(self, job: Job, number: int) -> bool:
        """Whether an earlier run has written this piece."""
        ...

    def write(self, job: Job, number: int, made: Iterator[Made]) -> None:
        """Writes a piece, as its pictures come."""
        ...

    def close(self, job: Job) -> str:
        """After the last piece; where the pictures are, for people."""
        ...


def ranges(n: int, size: int) -> list[Sequence[int]]:
    """0 to n - 1 in pieces of `size`."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]
