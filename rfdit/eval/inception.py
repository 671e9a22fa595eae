"""The Inception network of FID: torch-fidelity's port of the graph of 2015."""

from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

OUTPUTS = ("pool", "spatial", "logits")


class InceptionFeatures(nn.Module):
    """See `FeatureNetwork`.

    weights: file; None for torch-fidelity's in torch.hub's cache, or its download.
    outputs: of pool (2048, for FID, KID, precision and recall), spatial (2023, for sFID) and logits
        (1008, without bias, for the Inception Score).
    precision: fp32, as published numbers are, or bf16, which is faster and says so in the protocol.
    """

    name = "inception-2015-12-05"

    def __init__(
        self, *, weights: str | None = None, outputs: tuple[str, ...] = ("pool",), precision: str = "fp32"
    ) -> None:
        raise NotImplementedError

    def to(self, device: torch.device) -> Self:  # type: ignore[override]
        raise NotImplementedError

    def forward(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        raise NotImplementedError
