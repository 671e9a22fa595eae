"""Each distinct caption is encoded once, always together with the same others."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from rfdit.batch import Batch, Condition
from rfdit.conditioning import Inputs
from rfdit.sampler.conditions import KEPT_GROUPS, Conditions

CPU = torch.device("cpu")


class Counting(nn.Module):
    """A caption's condition is its length and the number of captions that were encoded with it."""

    drop = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []

    def forward(self, inputs: Sequence[str], *, device: torch.device) -> Condition:
        self.calls.append(list(inputs))
        rows = [[float(len(text)), float(len(inputs))] for text in inputs]
        return Condition(torch.tensor(rows), torch.tensor(rows)[:, None], torch.ones(len(rows), 1).bool())

    def inputs(self, batch: Batch) -> Inputs:
        raise AssertionError("nothing here reads a batch")

    def null(self, *, device: torch.device) -> Condition:
        return self([""], device=device)


@pytest.fixture
def conditioner() -> Counting:
    return Counting()


def conditions(conditioner: Counting, inputs: list[str], negative: str | None = None) -> Conditions:
    return Conditions(conditioner, inputs, negative=negative, group=2, device=CPU)


def test_each_distinct_caption_once(conditioner: Counting) -> None:
    found = conditions(conditioner, ["a", "bb", "a", "ccc", "bb"])
    for _ in range(2):
        rows = found(["ccc", "a", "a", "bb"])
        assert rows.pooled[:, 0].tolist() == [3, 1, 1, 2]
        assert rows.tokens is not None
        assert rows.tokens[:, 0, 0].tolist() == [3, 1, 1, 2]
    assert conditioner.calls == [["a", "bb"], ["ccc"]]


def test_company_does_not_depend_on_who_asks(conditioner: Counting) -> None:
    inputs = ["a", "bb", "ccc", "dddd"]
    for captions in (["bb"], ["bb", "dddd"], ["dddd", "ccc", "bb", "a"]):
        rows = conditions(conditioner, inputs)(captions)
        assert rows.pooled[:, 1].tolist() == [2] * len(captions)


def test_what_to_move_away_from_is_encoded_once(conditioner: Counting) -> None:
    for negative, length in ((None, 0), ("ugly", 4)):
        conditioner.calls = []
        found = conditions(conditioner, ["a"], negative)
        assert [found.away(["a"] * n).pooled[:, 0].tolist() for n in (3, 1)] == [[length] * 3, [length]]
        assert conditioner.calls == [[negative or ""]]


def test_memory_is_bounded(conditioner: Counting) -> None:
    inputs = [str(i) for i in range(4 * KEPT_GROUPS)]
    found = conditions(conditioner, inputs)
    for text in inputs:
        found([text])
    assert len(conditioner.calls) == 2 * KEPT_GROUPS  # each group once, one after the other
    assert len(found._groups) == KEPT_GROUPS
    assert found([inputs[0]]).pooled[0, 0] == 1  # encoded again


def test_unknown_input(conditioner: Counting) -> None:
    with pytest.raises(KeyError):
        conditions(conditioner, ["a"])(["b"])
