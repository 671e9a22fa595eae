"""The contents of a run's last checkpoint, and equality to the last bit."""

from pathlib import Path
from typing import Any

import torch

from rfdit.checkpoint.saved_run import read_raw


def assert_equal(a: object, b: object, path: str = "") -> None:
    """Bit for bit, through nested containers."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list):
        assert isinstance(b, list)
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b)):
            assert_equal(*pair, f"{path}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def resumed_state(run: Path) -> dict[str, object]:
    """Everything that a resumed run must have in common with one that was never interrupted."""
    raw = torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    return {
        name: raw[name]
        for name in (
            "state_dict",
            "ema",
            "optimizer_states",
            "lr_schedulers",
            "global_step",
            "rng",
            "StreamDataModule",
        )
    }


def tensors(node: Any, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(node, torch.Tensor):
        return {path: node}
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return {k: v for key, child in children for k, v in tensors(child, f"{path}/{key}").items()}


def trained_state(run: Path) -> dict[str, torch.Tensor]:
    """Weights, EMA and optimiser."""
    saved = read_raw(run / "checkpoints/last.ckpt")
    return {
        name: tensor
        for part in ("state_dict", "ema", "optimizer_states")
        for name, tensor in tensors(saved[part], part).items()
    }
