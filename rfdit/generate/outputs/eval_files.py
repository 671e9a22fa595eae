"""The rows that an evaluation keeps in place of its images, in files."""

import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from rfdit.counted import counted
from rfdit.eval.evaluation import Evaluation, Rows
from rfdit.eval.protocol import EvalProtocol
from rfdit.generate.outputs.output import GeneratedImage, Job, open_resumable, ranges
from rfdit.storage.finished import is_finished, write_finished

IMAGES_PER_FILE = 256  # about; a kill loses those of an unfinished file


class EvaluationFiles:
    """An `Output` with a file of rows for each few hundred images, from which rank 0 computes the numbers.

    device: the device of the evaluation's networks.
    """

    def __init__(self, *, evaluation: Evaluation, protocol: EvalProtocol, device: torch.device) -> None:
        self.evaluation, self.protocol, self.device = evaluation, protocol, device
        self._started = time.monotonic()

    def open(self, job: Job) -> None:
        open_resumable(job, protocol=self.protocol.as_dict())

    def pieces(self, job: Job) -> list[Sequence[int]]:
        """Whole batches."""
        batches = max(1, IMAGES_PER_FILE // job.batch_size)
        return ranges(len(job.sheet.specs), batches * job.batch_size)

    def missing(self, job: Job, numbers: Sequence[int]) -> list[int]:
        return [number for number in numbers if not is_finished(self._file(job, number))]

    def write(self, job: Job, number: int, images: Iterator[GeneratedImage]) -> None:
        batches = []
        while batch := list(islice(images, job.batch_size)):
            pixels = torch.stack([generated.image for generated in batch]).to(self.device)
            inputs: Any = [generated.spec.input for generated in batch]
            batches.append(self.evaluation.rows(pixels, inputs))
        rows = {name: torch.cat([batch[name] for batch in batches]).cpu() for name in batches[0]}
        write_finished(self._file(job, number), lambda file: file.write(save(rows)))

    def close(self, job: Job) -> str:
        return f"{counted(len(job.sheet.specs), 'image')} generated for {self.evaluation.name}"

    def measure(self, job: Job) -> tuple[dict[str, float], float]:
        """The numbers, and the seconds since the beginning; on rank 0 alone, outside any process group."""

        def read() -> Iterator[Rows]:
            for number in range(len(self.pieces(job))):
                rows = load(self._file(job, number).read_bytes())
                yield {name: values.to(self.device) for name, values in rows.items()}

        return self.evaluation.measure(read()), time.monotonic() - self._started

    def remove(self, job: Job) -> None:
        """Removes the files, once the numbers are recorded."""
        shutil.rmtree(job.folder)

    def _file(self, job: Job, number: int) -> Path:
        return job.folder / f"{number:05d}.safetensors"
