"""Fixtures for tests of both networks: each of them runs with a DiT and with an MMDiT."""

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from rfdit.batch import Condition

Make = Callable[..., nn.Module]
Inputs = Callable[..., tuple[Tensor, Tensor, Condition]]


@pytest.fixture(params=["dit", "mmdit"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def network(request: pytest.FixtureRequest, kind: str) -> Make:
    return request.getfixturevalue(kind)


@pytest.fixture
def given(inputs: Inputs, kind: str) -> Inputs:
    return lambda *args, **kwargs: inputs(*args, mmdit=kind == "mmdit", **kwargs)
