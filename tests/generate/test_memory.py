"""However many images there are, only one or two batches of them are in memory."""

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.generate.outputs.npz_array import NpzArray
from rfdit.generate.outputs.output import Job, Output
from rfdit.generate.outputs.tar_shards import TarShards
from rfdit.generate.produce import Task, produce
from rfdit.generate.request import ContactSheet, ImageSpec, SampleRequest
from rfdit.processes.rank import Process
from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from tests.support.models.pipelines import pipeline, small_network


class Weighed:
    """A use that counts how many of its batches are still alive."""

    def __init__(self) -> None:
        self.batches: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def sheet(self, request: SampleRequest) -> ContactSheet:
        return request.sheet()

    def __call__(
        self, pipeline: Pipeline, specs: Sequence[ImageSpec], conditions: Conditions
    ) -> UInt8[Tensor, "n 3 H W"]:
        batch = np.zeros((len(specs), 3, 4, 4), dtype=np.uint8)
        self.batches.append(weakref.ref(batch))  # the tensor's storage keeps it
        self.most = max(self.most, sum(ref() is not None for ref in self.batches))
        return torch.from_numpy(batch)

    def show(self, folder: Path, images: UInt8[Tensor, "n 3 H W"], sheet: ContactSheet) -> Path:
        return folder


@pytest.mark.parametrize("output", [TarShards(), NpzArray()])
def test_a_batch_is_gone_when_the_next_is_written(output: Output, tmp_path: Path) -> None:
    use, made_by = Weighed(), pipeline(small_network())
    sheet = SampleRequest(inputs=[0, 1], captions=["0", "1"], count=100).sheet()
    job = Job(folder=tmp_path, sheet=sheet, use=use, settings={}, batch_size=5)
    output.open(job)
    produce(Task(job, output, {None: made_by}, made_by.conditions([0, 1])), Process())
    assert len(use.batches) == 40
    assert use.most <= 2
