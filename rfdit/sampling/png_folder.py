"""`output=png`: single PNGs, a sheet of all, and a record."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rfdit.grid import to_pil
from rfdit.sampling.output import Job, Made

LARGEST_SHEET = 1024  # pictures


class PngFolder:
    """00000.png and so on, samples.json, and what the use shows them in.

    Each PNG holds what is needed to make it again, under `prompt` and `rfdit`. What an earlier run
    left in the folder is written over.
    """

    def open(self, job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)

    def pieces(self, job: Job) -> list[Sequence[int]]:
        """A piece is a batch of one kind."""
        kinds: dict[tuple[object, ...], list[int]] = {}
        for index, picture in enumerate(job.request.pictures):
            kinds.setdefault(picture.kind, []).append(index)
        return [
            indices[start : start + job.batch_size]
            for indices in kinds.values()
            for start in range(0, len(indices), job.batch_size)
        ]

    def finished(self, job: Job, number: int) -> bool:
        return False

    def write(self, job: Job, number: int, made: Iterator[Made]) -> None:
        for one in made:
            info = PngInfo()
            info.add_itxt("prompt", str(one.picture.given))
            info.add_itxt("rfdit", json.dumps(job.settings | _entry(one.index, job)))
            to_pil(one.image).save(job.folder / _name(one.index), pnginfo=info)

    def close(self, job: Job) -> str:
        n, folder = len(job.request.pictures), job.folder
        entries = [_entry(i, job) for i in range(n)]
        record = json.dumps(job.settings | {"samples": entries}, indent=2)
        (folder / "samples.json").write_text(record + "\n")
        if n > LARGEST_SHEET:
            return f"{n} pictures in {folder}, too many for one sheet"
        # Other processes have made some of them; PNGs lose nothing.
        images = torch.stack([_read(folder / _name(i)) for i in range(n)])
        return f"{n} pictures in {folder}, together in {job.use.show(folder, images, job.request)}"


def _name(index: int) -> str:
    return f"{index:05d}.png"


def _entry(index: int, job: Job) -> dict[str, object]:
    return {"file": _name(index)} | job.request.pictures[index].as_dict()


def _read(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
