"""Norms in float32: of tokens, before they are modulated, and of the queries and keys of attention.

    layer: (x - mean(x)) / sqrt(var(x) + eps)        arXiv 1607.06450
    rms:   x / sqrt(mean(x^2) + eps)                 arXiv 1910.07467

Tokens that adaLN modulates are normalised without weights, since its scale and shift take their place.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Tokens = Float[Tensor, "b n d"]
Norm = Literal["layer", "rms"]
QKNorm = bool | Norm  # True is rms
TokenNorm = Callable[[Tokens], Tokens]


def layer_norm(x: Tokens) -> Tokens:
    """LayerNorm along the width, without weights, eps 1e-6."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)


def rms_norm(x: Tokens) -> Tokens:
    """RMSNorm along the width, without weights, eps 1e-6."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6)


TOKEN_NORMS: dict[Norm, TokenNorm] = {"layer": layer_norm, "rms": rms_norm}


class WeightedRMSNorm(nn.RMSNorm):
    """RMSNorm times a weight for each number of the last axis."""

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        normed = F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps)
        return normed.to(x.dtype)


class WeightedLayerNorm(nn.LayerNorm):
    """LayerNorm times a weight, plus a bias, for each number of the last axis."""

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def head_norm(norm: Norm, head: int) -> nn.Module:
    """The norm of queries or keys, with the eps of the models that have it: SD3.5 and FLUX, ViT-22B and REPA."""
    return WeightedRMSNorm(head, eps=1e-6) if norm == "rms" else WeightedLayerNorm(head, eps=1e-5)


def weighted_norm(norm: Norm, width: int) -> nn.Module:
    """The norm of tokens in blocks without adaLN."""
    return WeightedRMSNorm(width, eps=1e-6) if norm == "rms" else WeightedLayerNorm(width, eps=1e-6)
