"""Tests that need a GPU. RFDIT_TEST_DEVICE=cpu rehearses these tests on a CPU, as far as that goes."""

import os
import shutil
from collections.abc import Iterator

import pytest
import torch

# cuBLAS reads it when it starts; without it torch.use_deterministic_algorithms raises.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; without one, the test is skipped."""
    name = os.environ.get("RFDIT_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is False: this test needs a GPU")
    return torch.device(name)


@pytest.fixture
def accelerator(device: torch.device) -> str:
    """The device as trainer.accelerator and sample.py's accelerator name it."""
    return "gpu" if device.type == "cuda" else device.type


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """No TF32, unless a script asks for it, which then ends with the test."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def deterministic(device: torch.device) -> Iterator[None]:
    """Kernels that add in one order, however many threads there are."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def compiler(device: torch.device) -> None:
    """torch.compile's back ends build C code when they are first used."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("torch.compile needs a C compiler, and there is none")


@pytest.fixture
def fp8(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """FP8 products; a rehearsal on a CPU emulates them."""
    pytest.importorskip("torchao.float8", reason="torchao is not installed")
    if device.type == "cpu":
        from rfdit.model.acceleration import use_fp8

        monkeypatch.setattr("rfdit.commands.train.check_fp8", lambda device: None)
        monkeypatch.setattr("rfdit.training.module.use_fp8", lambda backbone: use_fp8(backbone, emulate=True))
    elif torch.cuda.get_device_capability(device) < (8, 9):
        pytest.skip("FP8 needs a GPU of compute capability 8.9 or more")
