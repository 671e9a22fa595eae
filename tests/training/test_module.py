"""Checks of batches before they are copied to the device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rfdit.batch import Batch
from rfdit.conditioning import LabelConditioner
from rfdit.training.module import FlowModule


def test_labels_are_checked_before_they_are_copied_to_a_gpu() -> None:
    conditioner = LabelConditioner(num_classes=4, width=8)
    module: Any = SimpleNamespace(network=SimpleNamespace(conditioner=conditioner), objective=None)
    good, bad = (
        Batch(images=None, positions=torch.arange(1), labels=torch.tensor([label])) for label in (3, 4)
    )
    assert FlowModule.on_before_batch_transfer(module, good, 0) is good
    with pytest.raises(ValueError, match="has the class 4, and classes are 0 to 3"):
        FlowModule.on_before_batch_transfer(module, bad, 0)
