"""The benchmark of feature passes runs, and the passes that it compares do the same work."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.commands.benchmarks import benchmark


@pytest.mark.slow
def test_passes_agree_and_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], assets: Path
) -> None:
    module = benchmark("eval", monkeypatch)
    weights = assets / "inception" / "pt_inception-2015-12-05-nofc.pth"
    passes = module.contenders(weights, torch.device("cpu"))
    batches = module.images_on(torch.device("cpu"), 3, 32, 2)
    mine, (mean, covariance) = (passes[name](batches) for name in ("rfdit fp32", "torch-fidelity"))
    assert np.allclose(mine.mean, mean, atol=1e-3)
    assert np.allclose(mine.covariance, covariance, atol=1e-3)

    monkeypatch.setattr(module, "contenders", lambda *_: passes)  # they take seconds to load
    arguments = ["--images", "2", "--side", "32", "--batch-size", "2", "--repeats", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["eval", "--weights", str(weights), *arguments])
    module.main()
    printed = capsys.readouterr().out
    assert "peak memory: " in printed
    assert "8 more" in printed
    rows = {
        line[:16].strip(): float(line.split()[-1]) for line in printed.split("to rfdit\n")[1].splitlines()
    }
    assert rows.keys() == passes.keys()
    assert rows["rfdit fp32"] == 1
    assert all(ratio > 0 for ratio in rows.values())
