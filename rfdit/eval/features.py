"""What turns images into the features that metrics compare."""

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@runtime_checkable
class FeatureNetwork(Protocol):
    """A frozen network; computes only the outputs it was built for.

    name: of the network, without its weights.
    sha256: of its weights' file.
    resize: how images come to the network's size, in words.
    precision: its arithmetic, `fp32` or `bf16`.
    outputs: what a call returns, in the network's own names, such as ("pool", "spatial").
    """

    name: str
    sha256: str
    resize: str
    precision: str
    outputs: tuple[str, ...]

    def to(self, device: torch.device) -> Self:
        """Moves it."""
        ...

    def __call__(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        """float32 features by output, on the images' device, without gradients.

        Raises ValueError for images that are no (b, 3, H, W) bytes.
        """
        ...


@runtime_checkable
class CaptionNetwork(FeatureNetwork, Protocol):
    """A feature network that puts captions into the space of its images."""

    def captions(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """One unit vector a caption, to compare with the output `image`."""
        ...
