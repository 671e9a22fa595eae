"""What an evaluation keeps of its pictures, in files, in place of the pictures."""

import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from rfdit.data.unfinished_files import write_locked
from rfdit.eval.evaluation import Evaluation, Rows
from rfdit.eval.protocol import EvalProtocol
from rfdit.sampling.output import Job, Made, ranges
from rfdit.sampling.record import agree

PICTURES_PER_FILE = 256  # about: a kill costs a file's


class EvaluationFiles:
    """An `Output` of a file of rows for each few hundred pictures, from which rank 0 takes the numbers.

    device: where the evaluation looks at pictures.
    """

    def __init__(self, *, evaluation: Evaluation, protocol: EvalProtocol, device: torch.device) -> None:
        self.evaluation, self.protocol, self.device = evaluation, protocol, device
        self._started = time.monotonic()

    def open(self, job: Job) -> None:
        agree(job, protocol=self.protocol.as_dict())

    def pieces(self, job: Job) -> list[Sequence[int]]:
        """Of whole batches."""
        batches = max(1, PICTURES_PER_FILE // job.batch_size)
        return ranges(len(job.request.pictures), batches * job.batch_size)

    def finished(self, job: Job, number: int) -> bool:
        return self._file(job, number).exists()

    def write(self, job: Job, number: int, made: Iterator[Made]) -> None:
        batches = []
        while batch := list(islice(made, job.batch_size)):
            images = torch.stack([one.image for one in batch])
            inputs: Any = [one.picture.given for one in batch]
            batches.append(self.evaluation.rows(images.to(self.device), inputs))
        rows = {name: torch.cat([batch[name] for batch in batches]).cpu() for name in batches[0]}
        write_locked(self._file(job, number), lambda file: file.write(save(rows)))

    def close(self, job: Job) -> str:
        return f"{len(job.request.pictures):,} pictures made for {self.evaluation.name}"

    def measure(self, job: Job) -> tuple[dict[str, float], float]:
        """The numbers, and the seconds since the beginning; in one process, outside any group of them."""

        def read() -> Iterator[Rows]:
            for number in range(len(self.pieces(job))):
                rows = load(self._file(job, number).read_bytes())
                yield {name: values.to(self.device) for name, values in rows.items()}

        return self.evaluation.measure(read()), time.monotonic() - self._started

    def remove(self, job: Job) -> None:
        """Once the numbers are recorded."""
        shutil.rmtree(job.folder)

    def _file(self, job: Job, number: int) -> Path:
        return job.folder / f"{number:05d}.safetensors"
