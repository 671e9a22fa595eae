"""Loss and gradients of a small network on a device."""

import pytest
import torch
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.model import DiT, MMDiT
from rfdit.objective import IndependentCoupling, UniformTime, VelocityMatching
from rfdit.randomness import SampleGenerator
from tests.support.models.networks import randomise

BATCH, SHAPE = 8, (4, 8, 8)
SIZE = {"width": 128, "depth": 2, "num_heads": 2, "patch_size": 2, "in_channels": 4, "input_size": 8}


def build(kind: str, **changes: object) -> nn.Module:
    """Random weights, the same at every call: at initialisation most of a network is multiplied by zero."""
    if kind == "dit":
        return randomise(DiT(**SIZE | changes))
    return randomise(MMDiT(**SIZE | {"pooled_width": 24, "token_width": 40} | changes))


def condition(kind: str) -> Condition:
    generator = torch.Generator().manual_seed(3)
    if kind == "dit":
        return Condition(pooled=torch.randn(BATCH, 128, generator=generator))
    pooled, tokens = (torch.randn(BATCH, *shape, generator=generator) for shape in ((24,), (7, 40)))
    return Condition(pooled, tokens, torch.arange(7) < torch.arange(BATCH)[:, None] % 7 + 1)


def loss_and_gradients(
    network: nn.Module, kind: str, device: torch.device, *, bf16: bool = False
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the objective for fixed latents, with noise and times from the samples' numbers."""
    network.to(device).zero_grad()
    z0 = torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(4)).to(device)
    objective = VelocityMatching(time=UniformTime(), coupling=IndependentCoupling())
    generator = SampleGenerator(seed=5, keys=torch.arange(BATCH, device=device), purpose="train")
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        cond = condition(kind).map(lambda tensor: tensor.to(device))
        loss = objective(network, z0, cond, generator=generator).total
    loss.backward()
    return loss.item(), {name: p.grad.cpu() for name, p in network.named_parameters() if p.grad is not None}


def assert_near(
    found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]], bound: float
) -> None:
    """Loss and every gradient within `bound` of its size, small gradients within that of a hundredth of all."""
    assert found[0] == pytest.approx(expected[0], rel=bound)
    assert found[1].keys() == expected[1].keys()
    whole = torch.stack([gradient.norm() for gradient in expected[1].values()]).norm()
    for name, gradient in expected[1].items():
        error = (found[1][name] - gradient).norm()
        assert error <= bound * max(gradient.norm(), whole / 100), (name, error / gradient.norm())
