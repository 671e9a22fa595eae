"""Metrics on two ranks are those on one."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rfdit.eval.clip_score import CLIPScore
from rfdit.eval.frechet import FrechetDistance
from rfdit.eval.inception_score import InceptionScore
from rfdit.eval.kernel import CLIPMaximumMeanDiscrepancy, KernelInceptionDistance
from rfdit.eval.manifold import DensityCoverage, PrecisionRecall
from rfdit.eval.measurement import Measurement
from rfdit.eval.reference_files import save_reference
from tests.eval.tiny import TinyFeatures, reference_of

BATCHES = 5
IMAGES = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def metrics() -> list[Any]:
    """Of every kind, each with its state."""
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


def measure(folder: str, batches: list[Tensor]) -> dict[str, float]:
    """As an evaluation does."""
    measurement = Measurement(
        network=TinyFeatures(),
        metrics=[FrechetDistance(), InceptionScore(feature="pool", splits=2)],
        reference=f"{folder}/real.npz",
    ).prepare((8, 8), torch.device("cpu"))
    for batch in batches:
        measurement.update(batch)
    return measurement.compute()


def rank(number: int, port: int, folder: str) -> None:
    """One of two, with unequal numbers of batches; then once more, where rank 1 has no images."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    torch.manual_seed(number)  # ranks need not agree on it
    _, batches = drawn()
    assert len(batches) == BATCHES
    shared = values([batches[:2], batches[2:]][number])
    lonely = values([batches, [batches[0][:0]]][number])
    measured = measure(folder, [[IMAGES[:30], IMAGES[30:]], []][number])
    torch.save([shared, lonely, measured], Path(folder) / f"{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    save_reference(reference_of({"pool": TinyFeatures()(255 - IMAGES)["pool"]}), tmp_path / "real.npz")
    torch.multiprocessing.spawn(rank, (port, str(tmp_path)), nprocs=2)  # type: ignore[attr-defined]
    wanted = values(drawn()[1])
    assert len(wanted) == 11
    for number in (0, 1):
        *by_metric, measured = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert measured == pytest.approx(measure(str(tmp_path), [IMAGES]), rel=1e-6)
        for found in by_metric:
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)
