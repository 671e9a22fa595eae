"""Small networks with random weights: at initialisation most of a network is multiplied by zero."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.model import DiT, MMDiT

DiTFactory = Callable[..., DiT]
MMDiTFactory = Callable[..., MMDiT]
Randomise = Callable[[nn.Module], nn.Module]


def randomise(module: nn.Module) -> nn.Module:
    """Every trainable weight random, the zero-initialised ones included, so that all of it matters."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.requires_grad:
                continue
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 16
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(noise * 0.7 * fan_in**-0.5)
    return module


@pytest.fixture
def dit() -> DiTFactory:
    """A DiT of width 32, depth 2, for 3 x 8 x 8 latents; keyword arguments change it."""

    def make(*, initial: bool = False, **changes: object) -> DiT:
        settings = {
            "width": 32,
            "depth": 2,
            "num_heads": 4,
            "patch_size": 2,
            "in_channels": 3,
            "input_size": 8,
        } | changes
        network = DiT(**settings)
        return network if initial else randomise(network)

    return make


@pytest.fixture
def mmdit() -> MMDiTFactory:
    """An MMDiT of width 32, depth 2, for 3 x 8 x 8 latents and captions of width 10, pooled 6."""

    def make(*, initial: bool = False, **changes: object) -> MMDiT:
        settings = {
            "width": 32,
            "depth": 2,
            "num_heads": 4,
            "patch_size": 2,
            "in_channels": 3,
            "input_size": 8,
            "pooled_width": 6,
            "token_width": 10,
        } | changes
        network = MMDiT(**settings)
        return network if initial else randomise(network)

    return make


@pytest.fixture
def inputs() -> Callable[..., tuple[torch.Tensor, torch.Tensor, Condition]]:
    """(z_t, t, cond) for either network: `mmdit=True` for captions, else a pooled vector of the width."""

    def make(
        n: int = 2, *, mmdit: bool = False, size: tuple[int, int] = (8, 8), channels: int = 3, width: int = 32
    ) -> tuple[torch.Tensor, torch.Tensor, Condition]:
        generator = torch.Generator().manual_seed(3)
        z_t = torch.randn(n, channels, *size, generator=generator)
        t = torch.linspace(0.1, 0.9, n)
        if not mmdit:
            return z_t, t, Condition(pooled=torch.randn(n, width, generator=generator))
        mask = torch.arange(5) < torch.arange(n)[:, None] % 4 + 2
        pooled, tokens = (torch.randn(n, *shape, generator=generator) for shape in ((6,), (5, 10)))
        return z_t, t, Condition(pooled=pooled, tokens=tokens, mask=mask)

    return make


@pytest.fixture(name="randomise")
def _randomise() -> Randomise:
    return randomise


def gradients(network: nn.Module, given: tuple[Tensor, Tensor, Condition]) -> dict[str, Tensor | None]:
    network.zero_grad()
    network(*given).square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
