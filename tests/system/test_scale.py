"""1,024 ranks, computed in one process: nothing that rfdit itself keeps or writes grows with their number."""

import itertools
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from rfdit.checkpoint.part_writer import PartWriter
from rfdit.checkpoint.parts import Part
from rfdit.checkpoint.sharded import _name, _publish, _tensors, replaced
from rfdit.conditioning import LabelConditioner
from rfdit.data.stream.positions import Bucket, EndlessPlan, StreamState, rebatched
from rfdit.ema import Averages, FixedDecay, PowerFunction
from rfdit.model import DiT
from rfdit.network import Network
from rfdit.training.optim import AdamW, ConstantSchedule
from rfdit.training.strategy import FullySharded

RANKS, WORKERS, BATCH = 1024, 4, 8
SHARDS = [997] * 3000  # three million samples


def endless(ranks: int, progress: StreamState | None = None) -> EndlessPlan:
    bucket = Bucket((256, 256), SHARDS)
    return EndlessPlan([bucket], seed=1, shuffle_shards=16, batch_size=BATCH, ranks=ranks, progress=progress)


def test_the_plan_of_a_rank_is_as_large_as_ever_and_the_ranks_share_the_stream() -> None:
    plan = endless(RANKS)
    assert len(pickle.dumps(plan)) <= len(pickle.dumps(endless(1))) + 16
    order = endless(1)
    steps = 2
    read: dict[int, int] = {}
    for rank in range(RANKS):
        for worker in range(steps):  # worker n has the n-th batch
            batch = next(plan.batches(rank, worker, WORKERS))
            read |= dict(zip(batch.positions, batch.numbers, strict=True))
    assert sorted(read) == list(range(steps * RANKS * BATCH))
    alone = itertools.islice(order.batches(0, 0, 1), steps * RANKS)
    assert read == {p: n for batch in alone for p, n in zip(batch.positions, batch.numbers, strict=True)}


def test_a_run_of_1024_ranks_goes_on_with_8() -> None:
    before = StreamState(origin=(0,), batch=RANKS * BATCH, batches=123)
    bucket = Bucket((256, 256), SHARDS)
    after = rebatched([bucket], before, 8 * BATCH)
    assert after == StreamState(origin=(123 * RANKS * BATCH,), batch=8 * BATCH)
    first = next(endless(8, after).batches(0, 0, 1))
    assert first.positions[0] == 123 * RANKS * BATCH


@contextmanager
def world(size: int, rank: int = 0) -> Iterator[FullySharded]:
    """One of so many ranks, with a strategy; what it would send goes nowhere."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    strategy = FullySharded(gather_bf16=False, timeout_minutes=1)
    strategy.mesh = init_device_mesh("cpu", (size,))
    try:
        yield strategy
    finally:
        dist.destroy_process_group()


def state(strategy: FullySharded) -> dict[str, Any]:
    """The state of networks, averages and optimiser in a checkpoint on this rank."""
    torch.manual_seed(0)
    network = Network(
        backbone=DiT(width=128, depth=2, num_heads=2, patch_size=2, in_channels=4, input_size=8),
        conditioner=LabelConditioner(num_classes=2047, width=128),
    )
    averages = Averages(
        network=network, profiles={"ema": FixedDecay(decay=0.999), "power": PowerFunction(std=0.1)}
    )
    for each in (network, *averages.networks.values()):
        strategy.shard(each)
    averages.start(network, {})
    optimizer, _ = AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0, schedule=ConstantSchedule())(network)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    averages.update()
    return {
        "state_dict": network.state_dict(),
        "ema": averages.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
    }


def local_numbers(checkpoint: dict[str, Any]) -> int:
    found: list[int] = []

    def count(_: object, tensor: torch.Tensor) -> torch.Tensor:
        found.append((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel())
        return tensor

    replaced(checkpoint, count)
    return sum(found)


def written_part(checkpoint: dict[str, Any], folder: Path) -> tuple[int, int]:
    """Bytes that this rank writes: in its part apart from numbers, and in the part's record."""
    writer = PartWriter(str(folder), save_distributed=True)
    tensors = {_name(keys): tensor for keys, tensor in _tensors(checkpoint).items()}
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    (file,) = folder.glob("*.safetensors")
    (beside,) = folder.glob("*.json")
    assert len(list(folder.iterdir())) == 2
    return file.stat().st_size - 4 * local_numbers(checkpoint), beside.stat().st_size


def written_rest(checkpoint: dict[str, Any], parts: int, folder: Path) -> int:
    """Bytes that the first rank writes for all, once so many ranks have written theirs."""
    folder.mkdir(parents=True)
    known = {f"shard-{n:05d}-model-00001-of-00001.safetensors": Part(bytes=n, crc32=n) for n in range(parts)}
    before = folder / "last.0.shards"
    before.mkdir()
    _publish(checkpoint, before, folder / "last.ckpt", known)
    assert [file.name for file in before.iterdir()] == ["rest.pt"]
    return (before / "rest.pt").stat().st_size


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_rank_holds_its_part_and_writes_no_more_about_more_ranks(tmp_path: Path) -> None:
    with world(1) as strategy:
        alone = state(strategy)
        numbers, (head, note) = local_numbers(alone), written_part(alone, tmp_path / "1")
        rest = written_rest(alone, 1, tmp_path / "rest/1")
    for rank in (0, RANKS // 2, RANKS - 1):
        with world(RANKS, rank) as strategy:
            mine = state(strategy)
            # Rows are not divided: the first ranks have one of each tensor at least, the last ones none of many.
            assert 0 < local_numbers(mine) < numbers / 100
            above_numbers, beside = written_part(mine, tmp_path / f"{RANKS}-{rank}")
            assert above_numbers <= head
            assert beside <= note
            if rank == 0:
                assert written_rest(mine, RANKS, tmp_path / f"rest/{RANKS}") == rest
