"""The two-layer MLP of a block, as its activation between two linear layers."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MLP = Literal["gelu", "swiglu"]
Activation = Callable[[Float[Tensor, "*n inner"]], Float[Tensor, "*n hidden"]]


def gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """GELU in its tanh form, x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3).

    Compiled, it is the same function written x sigmoid(2 u): a CPU's vectorised tanh takes three
    times as long as its exponential.
    """
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * x * (1 + 0.044715 * x * x))
    return F.gelu(x, approximate="tanh")


def swiglu(x: Float[Tensor, "*n two_h"]) -> Float[Tensor, "*n h"]:
    """silu(a) b of the two halves a, b of the last axis (arXiv 2002.05202)."""
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


ACTIVATIONS: dict[MLP, Activation] = {"gelu": gelu, "swiglu": swiglu}


def mlp_widths(kind: MLP, width: int, ratio: float) -> tuple[int, int]:
    """(outputs of the first layer, inputs of the second) of an MLP whose hidden layer is `ratio` widths wide.

    SwiGLU has three matrices instead of two, and two thirds of the hidden width, so as many parameters.
    """
    hidden = int(ratio * width)
    if kind == "gelu":
        return hidden, hidden
    hidden = int(2 / 3 * hidden)
    return 2 * hidden, hidden
