"""The programs of benchmarks/ as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rfdit


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    file = Path(rfdit.__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"benchmark_{name}", module)
    spec.loader.exec_module(module)
    return module
