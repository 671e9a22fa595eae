"""The cost of a network, parameters and multiply-adds of a forward pass, and the peak rate of a device."""

import copy
import time
from dataclasses import replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rfdit.batch import Condition
from rfdit.model.routing import routed
from rfdit.protocols import Backbone, Route

SMALL = 256  # the side of the matrices that are multiplied first
SECONDS_OF_A_PRODUCT = 5.0


def count_parameters(module: nn.Module, *, trainable: bool = False) -> int:
    """The number of parameters of a module; frozen tables count as well unless `trainable`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def weightless(backbone: Backbone) -> Backbone:
    """A copy on the meta device, which has shapes and takes no memory."""
    # The copy's weights are meta from the start: a large network would not fit a device twice.
    weights: dict[int, object] = {id(p): nn.Parameter(p.detach().to("meta")) for p in backbone.parameters()}
    return copy.deepcopy(backbone, weights)


def count_macs(
    backbone: Backbone, latent: tuple[int, int, int], cond: Condition, *, route: Route | None = None
) -> int:
    """Multiply-adds of one forward pass on one latent (c, h, w), counted without computing it.

    The papers' "Gflops" are these, in billions; a training step takes six
    floating-point operations for each (two for the forward pass, four for the backward pass).
    cond: the condition of one sample, and route that of its tokens; their values do not matter.
    """
    meta = torch.device("meta")
    network, one = weightless(backbone), cond.map(lambda x: x[:1].to(meta))
    if route is not None:
        kept, left_out = (None if x is None else x[:1].to(meta) for x in (route.kept, route.left_out))
        route = replace(route, kept=kept, left_out=left_out)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), routed(network, route):
        network(torch.empty(1, *latent, device=meta), torch.empty(1, device=meta), one)
    return counter.get_total_flops() // 2


def matmul_peak(
    device: torch.device, dtype: torch.dtype, *, size: int | None = None, repeats: int = 7
) -> float:
    """The device's matrix-product rate in floating-point operations per second, measured; MFU is relative to it.

    The best of `repeats` products of two square matrices: interruptions only ever slow one down. Where one
    product of the usual size would take over `SECONDS_OF_A_PRODUCT`, as in bf16 on a processor that has no
    units for it, matrices of a side of `SMALL` are measured in its place.
    """
    n = size or (8192 if device.type == "cuda" else 1536)
    small = min(n, SMALL)
    seconds = _seconds_of_product(small, device, dtype, repeats)
    if small < n and seconds * (n / small) ** 3 < SECONDS_OF_A_PRODUCT:
        small, seconds = n, _seconds_of_product(n, device, dtype, repeats)
    return 2 * small**3 / seconds


def _seconds_of_product(n: int, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """The shortest time of a product of two (n, n) matrices."""
    # Random numbers, since zeros multiply faster; not from the run's own generator.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def once() -> float:
        _wait_for(device)
        start = time.perf_counter()
        a @ b
        _wait_for(device)
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(repeats))


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
