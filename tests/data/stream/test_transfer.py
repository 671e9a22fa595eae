"""Batches reach the device whole, and on a GPU beside the work that goes on there."""

import pytest
import torch

from rfdit.batch import Batch, Condition
from rfdit.data.stream.transfer import Transfer


def batch(side: int) -> Batch:
    tokens = torch.randn(2, 3, 4)
    return Batch(
        images=torch.randint(256, (2, 3, side, side), dtype=torch.uint8),
        positions=torch.tensor([3, 4]),
        captions=["a", "b"],
        condition=Condition(pooled=torch.randn(2, 4), tokens=tokens, mask=torch.ones(2, 3, dtype=torch.bool)),
    )


def assert_same(ours: Batch, theirs: Batch) -> None:
    assert ours.images is not None
    assert ours.condition is not None
    assert theirs.condition is not None
    assert torch.equal(ours.images.cpu(), theirs.images)
    assert torch.equal(ours.condition.tokens.cpu(), theirs.condition.tokens)
    assert (ours.positions.tolist(), ours.captions) == ([3, 4], ["a", "b"])


def test_on_a_cpu_nothing_changes() -> None:
    given = batch(4)
    assert_same(Transfer()(given, torch.device("cpu")), given)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this test needs a GPU")
def test_copies_do_not_wait_for_what_the_gpu_does() -> None:
    device, transfer = torch.device("cuda"), Transfer()
    given, factor = batch(512).pin_memory(), torch.randn(8192, 8192, device=device)
    transfer(given, device)  # starts the stream
    torch.cuda.synchronize()
    for _ in range(20):
        factor = (factor @ factor).clamp(-1, 1)
    busy = torch.cuda.Event()
    busy.record()
    moved = transfer(given, device)
    assert transfer._copies is not None
    transfer._copies.synchronize()
    assert not busy.query(), "the copy has waited for the products before it"
    torch.cuda.synchronize()
    assert_same(moved, given)
