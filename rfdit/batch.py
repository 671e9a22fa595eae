"""The two types that packages exchange: `Batch`, from the data, and `Condition`, to the network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils._pytree import register_dataclass

Latent = Float[Tensor, "b c h w"]
Images = Float[Tensor, "b 3 H W"]  # in [-1, 1]
Time = Float[Tensor, "b"]


@dataclass(frozen=True)
class Batch:
    """Samples as a data source delivers them.

    images: uint8 RGB; they reach the device as bytes and are scaled there. None for cached latents.
    rejected: of preference pairs, the image that was rejected in favour of each of `images`, under the same condition.
    positions: each sample's position in the endless stream. All randomness of a sample (noise, time,
        dropped caption, augmentation) is a function of (seed, position).
    moments: cached latents: the output of the autoencoder's encoder, before normalisation.
    captions, labels: the samples' conditions; a source gives either or both.
    condition: cached text features of the captions.
    features: cached features of the clean images, from the teacher of an auxiliary loss.
    micro: numbers of micro-conditioning, one for each of its fields.
    noise: of recorded pairs, seed and key of the noise that each latent was made from.
    keys: the samples' names, for reports.
    skipped: counts, by reason, of the samples of this batch that could not be used.
    """

    images: UInt8[Tensor, "b 3 H W"] | None
    positions: Int[Tensor, "b"]
    moments: Float[Tensor, "b m h w"] | None = None
    captions: Sequence[str] | None = None
    labels: Int[Tensor, "b"] | None = None
    condition: "Condition | None" = None
    features: Float[Tensor, "b f rows columns"] | None = None
    micro: Float[Tensor, "b n"] | None = None
    noise: Int[Tensor, "b 2"] | None = None
    rejected: UInt8[Tensor, "b 3 H W"] | None = None
    keys: Sequence[str] | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def num_images(self) -> int:
        """The number of images, or of their latents: of a pair, two."""
        return len(self) * (1 if self.rejected is None else 2)

    def to(self, device: torch.device | str) -> "Batch":
        """Moves every tensor to `device`; Lightning calls this method.

        A GPU copies from page-locked memory while it computes; the host does not wait.
        """
        overlapped = torch.device(device).type == "cuda"
        return self.map(lambda tensor: tensor.to(device, non_blocking=overlapped))

    def pin_memory(self) -> "Batch":
        """Copies every tensor to page-locked memory; the DataLoader calls this before the copy to a GPU."""
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Applies a function to every tensor, including those of the condition."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        tensors = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        condition = self.condition and self.condition.map(change)
        return Batch(**values | tensors | {"condition": condition})


@dataclass(frozen=True)
class Condition:
    """The input of the network apart from z_t and t.

    pooled: one vector per sample: a class embedding, or the pooled caption.
    tokens, mask: one vector per caption token, and True where a token is not padding. None for labels.
    duration: t - r, for networks that give the mean velocity over the time from r to t. None is 0, the velocity at t.
    guidance: the scale, for networks that take it as an input. None is the network's own default.
    """

    pooled: Float[Tensor, "b p"]
    tokens: Float[Tensor, "b l d"] | None = None
    mask: Bool[Tensor, "b l"] | None = None
    duration: Float[Tensor, "b"] | None = None
    guidance: Float[Tensor, "b"] | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """Applies a function to every tensor."""
        return self._with_each(lambda tensor: None if tensor is None else change(tensor), self)

    def __getitem__(self, rows: slice) -> "Condition":
        """The condition of a slice of the samples."""
        return self.map(lambda tensor: tensor[rows])

    def expand(self, n: int) -> "Condition":
        """The condition of one sample repeated for n, without a copy."""
        return self.map(lambda tensor: tensor.expand(n, *tensor.shape[1:]))

    def where(self, keep: Bool[Tensor, "b"], other: "Condition") -> "Condition":
        """This condition where `keep`, `other` elsewhere, sample by sample.

        What only one of the conditions has, such as tokens, the result does not have.
        """

        def choose(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None or theirs is None:
                return None
            return torch.where(keep.view(-1, *[1] * (mine.ndim - 1)), mine, theirs)

        return self._with_each(choose, self, other)

    @staticmethod
    def join(parts: Sequence["Condition"]) -> "Condition":
        """Concatenates the conditions of several batches."""

        def joined(*tensors: Tensor | None) -> Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(present) if len(present) == len(tensors) else None

        return Condition._with_each(joined, *parts)

    @staticmethod
    def _with_each(change: Callable[..., Tensor | None], *conditions: "Condition") -> "Condition":
        """The condition of which each part is a function of those of others."""
        values: Any = {
            each.name: change(*(getattr(condition, each.name) for condition in conditions))
            for each in fields(Condition)
        }
        return Condition(**values)


# FSDP looks for tensors in the outputs of a module. That of PyTorch 2.11 does not look into unregistered
# dataclasses, and would never reduce the gradients of a trained conditioner.
register_dataclass(Condition)
