"""The benchmark runs, on a network small enough for a test."""

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import rfdit


@pytest.fixture
def train_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    file = Path(rfdit.__file__).parents[1] / "benchmarks" / "train_step.py"
    spec = importlib.util.spec_from_file_location("train_step", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_step", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(module.SIZES, "s", (48, 2, 4))
    return module


def setting(train_step: ModuleType, precision: str) -> object:
    return train_step.Setting("s", 8, 2, precision, torch.device("cpu"), False)


def test_it_compares(train_step: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    train_step.compare(setting(train_step, "fp32"), repeats=1, warmup=1)
    printed = capsys.readouterr().out
    assert "S/8 batch 2 fp32" in printed
    assert printed.count("MFU") == 2
    assert "ratio" in printed


def test_it_says_where_the_time_goes(train_step: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    train_step.show_profile(setting(train_step, "fp32"), steps=1, warmup=0)
    assert "matrix products" in capsys.readouterr().out


def test_a_step_trains(train_step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both contenders change their weights and their average."""
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def noted(network: nn.Module) -> nn.Module:
        pairs.append((network, copy.deepcopy(network)))
        return pairs[-1][1]

    monkeypatch.setattr(train_step, "copy", SimpleNamespace(deepcopy=noted))
    for build in (train_step.rfdit_step, train_step.diffusers_step):
        step = build(setting(train_step, "fp32"))
        before = [[p.clone() for p in module.parameters()] for module in pairs[-1]]
        step()
        for module, old in zip(pairs[-1], before):
            assert any(not torch.equal(p, q) for p, q in zip(module.parameters(), old))
