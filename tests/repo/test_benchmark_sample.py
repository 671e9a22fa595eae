"""The sampling benchmarks run, on networks small enough for a test."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from tests.support.commands.benchmarks import benchmark
from tests.support.training.checkpoints import write_checkpoint


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    module = benchmark("sample", monkeypatch)
    monkeypatch.setattr(module, "matmul_peak", lambda device, dtype: 1e12)
    return module


def setting(sample: ModuleType, model: str, precision: str = "fp32") -> object:
    return sample.Setting(model, (24, 2, 2), 8, 2, 2, precision, torch.device("cpu"))


@pytest.mark.parametrize("model", ["dit", "mmdit"])
def test_both_pipelines_make_the_same(
    sample: ModuleType, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    sample.compare(setting(sample, model), repeats=1)
    printed = capsys.readouterr().out
    assert printed.count("images/s") == 2
    assert "ratio" in printed
    difference, largest = (float(printed.split(at)[1].split()[0].strip(",")) for at in ("at most", "up to"))
    assert difference < 1e-4 * largest


def test_what_guidances_and_solvers_cost(sample: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    sample.costs(setting(sample, "dit", "bf16"), repeats=1)
    printed = capsys.readouterr().out
    evaluations = {
        line.split("=")[1].split("  ")[0]: int(line.split(" evaluations")[0].split()[-1])
        for line in printed.splitlines()
        if "evaluations" in line
    }
    assert (
        evaluations.items() >= {"none": 2, "cfg": 2, "autoguidance": 2, "heun": 4, "rk4": 8, "sde": 2}.items()
    )


def test_curves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    curves = benchmark("steps_and_scales", monkeypatch)
    monkeypatch.setattr(curves, "EVALUATIONS", (1, 2))
    monkeypatch.setattr(curves, "SCALES", (1.0, 3.0))
    monkeypatch.setattr(curves, "STEPS", 1)
    write_checkpoint(tmp_path / "run.ckpt")
    words = [
        "",
        "--ckpt",
        str(tmp_path / "run.ckpt"),
        "--out",
        str(tmp_path),
        "--images",
        "1",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", words)
    curves.main()
    rows = curves.read(tmp_path / "steps_and_scales.csv")
    assert [(row.curve, row.name, row.x) for row in rows[:4]] == [
        ("steps", "Euler", 1), ("steps", "Euler", 2), ("steps", "Heun", 2), ("steps", "midpoint", 2),
    ]  # fmt: skip
    assert len(rows) == 4 + 6
    assert all(row.n == 12 and 0 <= row.scene <= row.colour <= 1 for row in rows)
    assert Image.open(tmp_path / "images/steps.png").size == (640, 400)
    # A second run goes on with what is there.
    monkeypatch.setattr(curves, "measure", lambda *anything: pytest.fail("measured again"))
    curves.main()
    assert curves.read(tmp_path / "steps_and_scales.csv") == rows
