"""Fixtures, and the shape checks that only tests pay for."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Every public signature's jaxtyping annotation is checked at run time while the tests run.
install_import_hook("rfdit", "beartype.beartype")

import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real data and pretrained weights, named by RFDIT_TEST_ASSETS."""
    folder = os.environ.get("RFDIT_TEST_ASSETS")
    if not folder:
        pytest.skip("RFDIT_TEST_ASSETS is not set: this test needs real data and pretrained weights")
    return Path(folder)
