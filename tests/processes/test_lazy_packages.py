"""Some packages are imported as far as they are used, and have all their names all the same."""

import subprocess
import sys

import pytest

HEAVY = "print(sorted({'torchvision', 'transformers', 'timm', 'torch_fidelity'} & sys.modules.keys()))"
METRICS = f"""
import sys
import rfdit
from lightning.pytorch.utilities.types import Metric
import torchmetrics
{HEAVY}
assert torchmetrics.Metric is Metric is torchmetrics.MeanMetric.mro()[2]
assert torchmetrics.MetricCollection is sys.modules["torchmetrics.collections"].MetricCollection
assert torchmetrics.__version__ == sys.modules["torchmetrics.__about__"].__version__
assert "MeanMetric" in torchmetrics.__all__ and callable(torchmetrics.functional.accuracy)
from torchmetrics import *
print(type(torchmetrics).__name__, MeanMetric()(2.0).item(), hasattr(torchmetrics, "NoSuch"))
"""
TOKENIZER = f"""
import sys
import rfdit
from rfdit.text_encoder.bpe import BPEEncoder
from open_clip.tokenizer import SimpleTokenizer
{HEAVY}
import open_clip
assert open_clip.SimpleTokenizer is SimpleTokenizer and "ViT-B-32" in open_clip.list_models()
assert open_clip.__version__ == sys.modules["open_clip.version"].__version__
print(type(open_clip).__name__, SimpleTokenizer()("a")[0, 1].item(), hasattr(open_clip, "NoSuch"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "ends"),
    [
        pytest.param(METRICS, "module 2.0 False", id="torchmetrics"),
        pytest.param(TOKENIZER, "module 320 False", id="open_clip"),
    ],
)
def test_the_rest_comes_when_it_is_used(program: str, ends: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", ends], done.stderr
