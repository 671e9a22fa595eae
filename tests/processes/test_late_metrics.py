"""torchmetrics is imported as far as it is used, and has all its names all the same."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import rfdit
{first}
import torchmetrics
heavy = {{"torchvision", "transformers", "torch_fidelity", "torchmetrics.functional"}}
print(sorted(heavy & sys.modules.keys()))
assert torchmetrics.Metric is torchmetrics.MeanMetric.mro()[2]
assert torchmetrics.MetricCollection is sys.modules["torchmetrics.collections"].MetricCollection
assert torchmetrics.__version__ == sys.modules["torchmetrics.__about__"].__version__
assert "MeanMetric" in torchmetrics.__all__ and callable(torchmetrics.functional.accuracy)
from torchmetrics import *
print(type(torchmetrics).__name__, MeanMetric()(2.0).item(), hasattr(torchmetrics, "NoSuch"))
"""


@pytest.mark.parametrize(
    "first",
    ["from lightning.pytorch.utilities.types import Metric", pytest.param("", marks=pytest.mark.slow)],
    ids=["after lightning", "alone"],
)
def test_the_rest_comes_when_it_is_used(first: str) -> None:
    program = PROGRAM.format(first=first)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "module 2.0 False"], done.stderr
