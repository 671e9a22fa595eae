"""The averages' benchmark runs, and it times averages of the step's network."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import rfdit
from tests.support.commands.composing import composed

BENCHMARKS = Path(rfdit.__file__).parents[1] / "benchmarks"


def test_it_prints_the_shares(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "train_step", raising=False)
    benchmark = runpy.run_path(str(BENCHMARKS / "ema.py"))
    monkeypatch.setitem(benchmark["SIZES"], "s", (48, 2, 4))
    setting = benchmark["Setting"]("s", 8, 2, "fp32", torch.device("cpu"), False)
    assert composed("train", "ema=power")["callbacks"]["ema"]["every_n_steps"] == benchmark["EVERY"]  # type: ignore[index]
    averages = benchmark["start_averages"](setting, benchmark["THREE"])
    averages.update()
    assert averages.updates == {"ema": 1, "power_05": 1, "power_10": 1}
    benchmark["measure"](setting, repeats=2, warmup=1)
    printed = capsys.readouterr().out
    assert "S/8 batch 2 fp32" in printed
    shares = [float(share) for share in re.findall(r"([\d.]+)% of the step with them", printed)]
    assert len(shares) == 3
    assert all(0 < share < 100 for share in shares)
    monkeypatch.delitem(sys.modules, "train_step")
