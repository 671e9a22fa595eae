"""The benchmark of what makes a step fast runs, and its variants train the same network."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rfdit

BENCHMARKS = Path(rfdit.__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "train_step", raising=False)
    found = runpy.run_path(str(BENCHMARKS / "levers.py"))
    monkeypatch.setitem(found["rfdit_network"].__globals__["SIZES"], "s", (48, 2, 4))
    monkeypatch.delitem(sys.modules, "train_step")
    return found


def test_every_variant_trains_a_step(benchmark: dict[str, Any]) -> None:
    setting = benchmark["Setting"]("s", 8, 2, "bf16", torch.device("cpu"), False)  # compiling takes minutes
    names = []
    for variant in benchmark["variants"](setting):
        step = benchmark["step_of"](replace(variant, setting=replace(variant.setting, compile=False)))
        step()
        names.append(variant.name)
    assert names[0] == "everything on"
    assert {"AdamW's default form", "manual attention", "recompute=full"} < set(names)


def test_modulations_of_one_product_and_of_many_agree(benchmark: dict[str, Any]) -> None:
    from rfdit.model.layers.adaln import ModulationTable

    table = ModulationTable(width=8, counts=[6, 6, 2])
    separate = benchmark["SeparateModulations"](table)
    with torch.no_grad():
        for parameter in separate.parameters():
            parameter.normal_()
        table.linear.weight.copy_(torch.cat([linear.weight for linear in separate.linears]))
        table.linear.bias.copy_(torch.cat([linear.bias for linear in separate.linears]))
    y = torch.randn(3, 8)
    for ours, theirs in zip(table(y), separate(y)):
        torch.testing.assert_close(ours, theirs)
