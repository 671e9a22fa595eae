"""A gradient that FSDP has not reduced ends the run, instead of ranks that drift apart."""

import pytest
import torch
from torch import nn

from rfdit.training.module import _require_reduced


def test_it_names_the_parameter() -> None:
    network = nn.Linear(2, 2)
    _require_reduced(network)  # no gradients, nothing to reduce
    network(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match="FSDP has not reduced the gradient of weight"):
        _require_reduced(network)
