"""However many pictures there are, one or two batches of them are in memory."""

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.sampler import Pipeline
from rfdit.sampler.conditions import Conditions
from rfdit.sampling.npz_array import NpzArray
from rfdit.sampling.output import Job, Output
from rfdit.sampling.place import Place
from rfdit.sampling.produce import produce
from rfdit.sampling.request import Asked, Picture, Request
from rfdit.sampling.tar_shards import TarShards
from tests.sampler.test_pipeline import network, pipeline  # noqa: F401


class Weighed:
    """A use that knows how many of its batches are still alive."""

    def __init__(self) -> None:
        self.batches: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def request(self, asked: Asked) -> Request:
        return asked.request()

    def __call__(
        self, pipeline: Pipeline, pictures: Sequence[Picture], conditions: Conditions
    ) -> UInt8[Tensor, "n 3 H W"]:
        batch = np.zeros((len(pictures), 3, 4, 4), dtype=np.uint8)
        self.batches.append(weakref.ref(batch))  # the tensor's storage keeps it
        self.most = max(self.most, sum(ref() is not None for ref in self.batches))
        return torch.from_numpy(batch)

    def show(self, folder: Path, images: UInt8[Tensor, "n 3 H W"], request: Request) -> Path:
        return folder


@pytest.mark.parametrize("output", [TarShards(), NpzArray()])
def test_a_batch_is_gone_when_the_next_is_written(
    output: Output,
    tmp_path: Path,
    network: object,  # noqa: F811
) -> None:
    use, made_by = Weighed(), pipeline(network)  # type: ignore[arg-type]
    request = use.request(Asked(inputs=[0, 1], captions=["0", "1"], count=100))
    job = Job(folder=tmp_path, request=request, use=use, settings={}, batch_size=5)
    output.open(job)
    produce(job, output, {None: made_by}, made_by.conditions([0, 1]), Place(0, 1))
    assert len(use.batches) == 40
    assert use.most <= 2
