"""Initial weights: those of DiT (arXiv 2212.09748), and at other widths those of muP (arXiv 2203.03466)."""

import math
from collections.abc import Sequence

import torch
from torch import nn


def initialize(
    backbone: nn.Module,
    *,
    zero: Sequence[nn.Linear],
    normal: Sequence[nn.Linear],
    inputs: Sequence[nn.Linear],
    width: int,
    base_width: int | None,
) -> None:
    """Draws the weights of all linear layers, xavier-uniform; biases are zero.

    zero: layers that start at zero: modulation and output (adaLN-Zero). normal: those drawn from
        N(0, 0.02): the time MLP.
    inputs: layers whose fan-in does not grow with the width. One that does not end at the width, as the first of
        two layers that read patches, is DiT's at any width.
    base_width: initialise for muP (table 3): as DiT at this width; at another, the outputs of `inputs`
        have the same size, and other weights have variance 1 / fan-in. None is DiT's at any width.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if module in inputs and module.out_features == width and base_width is not None:
                fan_in = module.in_features
                with torch.no_grad():
                    module.weight.mul_(math.sqrt((fan_in + width) / (fan_in + base_width)))
    for linear in normal:
        shrink = 1.0 if base_width is None or linear in inputs else math.sqrt(base_width / width)
        nn.init.normal_(linear.weight, std=0.02 * shrink)
    for linear in zero:
        nn.init.zeros_(linear.weight)
