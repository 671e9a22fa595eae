"""What the parts know of each other: the Protocol through which siblings meet without importing each other."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from rfdit.batch import Condition, Latent, Time


@runtime_checkable
class Backbone(Protocol):
    """A velocity network v(z_t, t, cond), in practice an nn.Module."""

    def __call__(self, z_t: Latent, t: Time, cond: Condition) -> Latent: ...


@runtime_checkable
class TextEncoder(Protocol):
    """An `nn.Module` that turns captions into a `Condition`.

    width: of a token's vector.
    pooled_width: of the caption's one vector.
    length: tokens per caption, padding included.
    """

    width: int
    pooled_width: int
    length: int

    def __call__(self, captions: Sequence[str], *, device: torch.device) -> Condition:
        """b captions -> pooled (b, pooled_width), tokens (b, length, width), mask (b, length), on `device`.

        The mask is True where a token is real, and for at least one token of every caption: the
        empty caption, which stands for no caption, is a caption too. Float32.
        """
        ...


@runtime_checkable
class Pretrained(Protocol):
    """An encoder with weights that training does not change, so that what it computes can be cached."""

    def weights_digest(self) -> str:
        """SHA-256 of the weights as they were loaded, wherever that was; asked for before the first use."""
        ...

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The arithmetic it uses on a device."""
        ...
