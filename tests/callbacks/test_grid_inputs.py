"""The inputs of the images that are sampled during training."""

from collections.abc import Sequence

import torch

from rfdit.batch import Batch, Condition
from rfdit.callbacks.sample_grid import first_inputs
from rfdit.conditioning import LabelConditioner, TextConditioner


class NoEncoder(torch.nn.Module):
    """A text encoder that must not be called."""

    width = pooled_width = length = 1

    def forward(self, captions: Sequence[str], *, device: torch.device) -> Condition:
        raise AssertionError


def batch(condition: Condition | None) -> Batch:
    return Batch(
        images=None,
        moments=torch.zeros(3, 4, 2, 2),
        positions=torch.arange(3),
        captions=["a", "b", "c"],
        labels=torch.tensor([2, 0, 1]),
        condition=condition,
    )


def test_the_first_captions_are_remembered_even_if_their_features_are_cached() -> None:
    conditioner = TextConditioner(encoder=NoEncoder())
    for condition in (None, Condition(pooled=torch.zeros(3, 1))):
        assert first_inputs(conditioner, batch(condition), 2) == ["a", "b"]


def test_labels_are_remembered_as_numbers() -> None:
    assert first_inputs(LabelConditioner(num_classes=3, width=4), batch(None), 5) == [2, 0, 1]
