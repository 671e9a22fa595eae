"""Metrics on two ranks are those on one."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rfdit.eval.metrics.clip_score import CLIPScore
from rfdit.eval.metrics.frechet import FrechetDistance
from rfdit.eval.metrics.inception_score import InceptionScore
from rfdit.eval.metrics.kernel import CLIPMaximumMeanDiscrepancy, KernelInceptionDistance
from rfdit.eval.metrics.manifold import DensityCoverage, PrecisionRecall
from tests.support.evaluation.tiny_features import reference_of

BATCHES = 5


def metrics() -> list[Any]:
    """One metric of every kind, each with its state."""
    return [
        FrechetDistance(),
        KernelInceptionDistance(subsets=4, subset_size=30),
        CLIPMaximumMeanDiscrepancy(feature="pool"),
        PrecisionRecall(),
        DensityCoverage(),
        InceptionScore(feature="pool", splits=3),
        CLIPScore(),
    ]


def drawn() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(90, 8, generator=generator), list(
        (torch.randn(110, 8, generator=generator) * 1.1).split(25)
    )


def values(batches: list[Tensor]) -> dict[str, Tensor]:
    real, _ = drawn()
    found: dict[str, Tensor] = {}
    for metric in metrics():
        if hasattr(metric, "compare_with"):
            metric.compare_with(reference_of({"pool": real}))
        for batch in batches:
            metric.update(batch, batch.flip(1)) if isinstance(metric, CLIPScore) else metric.update(batch)
        found |= metric.compute()
    return found


def rank(number: int, port: int, folder: str) -> None:
    """One of two ranks, with unequal numbers of batches; then once more, with no images on rank 1."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    torch.manual_seed(number)  # ranks need not agree on it
    _, batches = drawn()
    assert len(batches) == BATCHES
    shared = values([batches[:2], batches[2:]][number])
    lonely = values([batches, [batches[0][:0]]][number])
    torch.save([shared, lonely], Path(folder) / f"{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank, (port, str(tmp_path)), nprocs=2)  # type: ignore[attr-defined]
    expected = values(drawn()[1])
    assert len(expected) == 11
    for number in (0, 1):
        for found in torch.load(tmp_path / f"{number}.pt", weights_only=True):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)
