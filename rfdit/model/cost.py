"""What a network costs: parameters, and multiply-adds of a forward pass."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rfdit.batch import Condition
from rfdit.protocols import Backbone


def count_parameters(module: nn.Module, *, trainable: bool = False) -> int:
    """Numbers in a module's parameters, frozen tables included unless `trainable`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def weightless(backbone: Backbone) -> Backbone:
    """A copy on the meta device, which knows shapes and takes no memory."""
    assert isinstance(backbone, nn.Module)
    # The copy's weights are meta from the start: a large network would not fit a device twice.
    weights: dict[int, object] = {id(p): nn.Parameter(p.detach().to("meta")) for p in backbone.parameters()}
    return copy.deepcopy(backbone, weights)


def count_macs(backbone: Backbone, latent: tuple[int, int, int], cond: Condition) -> int:
    """Multiply-adds of one forward pass on one latent (c, h, w), counted without computing it.

    The papers' "Gflops" are these, in thousands of millions; a training step takes six
    floating-point operations for each (two for the forward pass, four for the backward pass).
    cond: the condition of one sample; its values do not matter.
    """
    meta = torch.device("meta")
    network, one = weightless(backbone), cond.map(lambda x: x[:1].to(meta))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, *latent, device=meta), torch.empty(1, device=meta), one)
    return counter.get_total_flops() // 2
