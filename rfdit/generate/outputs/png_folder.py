"""`output=png`: single PNGs, a sheet of all images, and a record."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rfdit.counted import counted
from rfdit.generate.outputs.output import GeneratedImage, Job
from rfdit.image_grid import to_pil, write_image
from rfdit.storage.atomic import write_text
from rfdit.storage.folders import make_folder

LARGEST_SHEET = 1024  # images


class PngFolder:
    """00000.png and so on, samples.json, and the sheet that the use writes.

    Each PNG holds what is needed to generate it again, under `prompt` and `rfdit`. Files of an earlier
    run are overwritten.
    """

    def open(self, job: Job) -> None:
        make_folder(job.folder, setting=job.setting)

    def pieces(self, job: Job) -> list[Sequence[int]]:
        """Batches of one kind."""
        kinds: dict[tuple[object, ...], list[int]] = {}
        for index, spec in enumerate(job.sheet.specs):
            kinds.setdefault(spec.kind, []).append(index)
        return [
            indices[start : start + job.batch_size]
            for indices in kinds.values()
            for start in range(0, len(indices), job.batch_size)
        ]

    def missing(self, job: Job, numbers: Sequence[int]) -> list[int]:
        return list(numbers)

    def write(self, job: Job, number: int, images: Iterator[GeneratedImage]) -> None:
        for generated in images:
            info = PngInfo()
            info.add_itxt("prompt", str(generated.spec.input))
            info.add_itxt("rfdit", json.dumps(job.settings | _entry(generated.index, job)))
            write_image(job.folder / _name(generated.index), to_pil(generated.image), pnginfo=info)

    def close(self, job: Job) -> str:
        n, folder = len(job.sheet.specs), job.folder
        entries = [_entry(i, job) for i in range(n)]
        record = json.dumps(job.settings | {"samples": entries}, indent=2)
        write_text(folder / "samples.json", record + "\n")
        if n > LARGEST_SHEET:
            return f"{n:,} images in {folder}, too many for one sheet"
        # Other processes have generated some of them; PNGs lose nothing.
        images = torch.stack([_read(folder / _name(i)) for i in range(n)])
        return f"{counted(n, 'image')} in {folder}, together in {job.use.show(folder, images, job.sheet)}"


def _name(index: int) -> str:
    return f"{index:05d}.png"


def _entry(index: int, job: Job) -> dict[str, object]:
    return {"file": _name(index)} | job.sheet.specs[index].as_dict()


def _read(path: Path) -> torch.Tensor:
    with Image.open(path, formats=["PNG"]) as image:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
