"""Batches and conditions: taken apart, put together, and chosen from, sample by sample."""

import torch
from torch.utils._pytree import tree_leaves

from rfdit.batch import Batch, Condition


def condition(n: int, *, offset: int = 0) -> Condition:
    """A captioned condition whose every number tells its sample."""
    row = torch.arange(n) + offset
    return Condition(
        pooled=row[:, None].expand(n, 3).float(),
        tokens=row[:, None, None].expand(n, 4, 2).float(),
        mask=(torch.arange(4) <= row[:, None] % 4),
    )


def same(a: Condition, b: Condition) -> bool:
    assert a.tokens is not None
    assert b.tokens is not None
    assert a.mask is not None
    assert b.mask is not None
    return torch.equal(a.pooled, b.pooled) and torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask)


def test_slicing_undoes_concatenation() -> None:
    first, second = condition(3), condition(2, offset=3)
    both = Condition.join([first, second])
    assert len(both) == 5
    assert same(both, condition(5))
    assert same(both[:3], first)
    assert same(both[3:], second)


def test_expand_repeats_the_one_sample() -> None:
    assert same(condition(1).expand(3), Condition.join([condition(1)] * 3))


def test_where_chooses_sample_by_sample() -> None:
    keep = torch.tensor([True, False, True])
    chosen = condition(3).where(keep, condition(3, offset=10))
    assert chosen.pooled[:, 0].tolist() == [0, 11, 2]
    for i, source in enumerate([condition(3), condition(3, offset=10), condition(3)]):
        assert same(chosen[i : i + 1], source[i : i + 1])


def test_conditions_without_tokens_stay_without() -> None:
    labels = Condition(pooled=torch.arange(3.0)[:, None])
    results = [
        labels[:2],
        Condition.join([labels, labels]),
        labels[:1].expand(4),
        labels.where(torch.tensor([True, False, True]), labels),
    ]
    assert all(result.tokens is None and result.mask is None for result in results)


def test_a_batch_moves_its_tensors_and_keeps_the_rest() -> None:
    batch = Batch(
        images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        positions=torch.tensor([7, 8]),
        captions=["a", "b"],
        keys=["k", "l"],
    )
    moved = batch.to("meta")
    assert moved.images.is_meta
    assert moved.positions.is_meta
    assert moved.captions == ["a", "b"]
    assert moved.keys == ["k", "l"]
    assert moved.labels is None
    assert len(moved) == 2
    assert not batch.images.is_meta


def test_the_tensors_of_a_condition_are_found() -> None:
    """FSDP looks for tensors in a conditioner's output; without them its gradients are not reduced."""
    pooled, tokens = torch.zeros(2, 3), torch.zeros(2, 4, 3)
    leaves = tree_leaves(Condition(pooled=pooled, tokens=tokens))
    assert any(leaf is pooled for leaf in leaves)
    assert any(leaf is tokens for leaf in leaves)
