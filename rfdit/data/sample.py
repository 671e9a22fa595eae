"""One sample on its way: raw files, then decoded, then a row of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from rfdit.batch import Batch, Condition

# What webdataset reads: "__key__", and the bytes of each file by its extension.
RawSample = Mapping[str, str | bytes]


@dataclass(frozen=True)
class Sample:
    """One decoded sample.

    image: for sources of images.
    moments: for sources of cached latents, what the autoencoder said of the image.
    caption, label: as far as they were asked for.
    condition: one row, for sources of cached text features.
    """

    key: str
    image: UInt8[Tensor, "3 H W"] | None = None
    moments: Float[Tensor, "m h w"] | None = None
    caption: str | None = None
    label: int | None = None
    condition: Condition | None = None


@runtime_checkable
class Decoder(Protocol):
    """Turns raw samples into samples."""

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Sample:
        """size: (height, width) of the image that is wanted.

        Raises SkippedSampleError with the reason for a sample that cannot be used.
        """
        ...

    def check(self, shards: Sequence[str], size: tuple[int, int]) -> None:
        """Raises ValueError if the shards cannot give what is wanted."""
        ...


def collate(samples: Sequence[Sample], positions: Int[Tensor, "b"]) -> Batch:
    """Samples of one shape, one after the other."""
    images = [sample.image for sample in samples if sample.image is not None]
    moments = [sample.moments for sample in samples if sample.moments is not None]
    captions = [sample.caption for sample in samples if sample.caption is not None]
    labels = [sample.label for sample in samples if sample.label is not None]
    conditions = [sample.condition for sample in samples if sample.condition is not None]
    # PyTorch's own collation stacks into shared memory in a worker, which saves a copy.
    return Batch(
        images=default_collate(images) if images else None,
        moments=default_collate(moments) if moments else None,
        positions=positions,
        captions=captions or None,
        labels=torch.tensor(labels) if labels else None,
        condition=Condition.join(conditions) if conditions else None,
        keys=[sample.key for sample in samples],
    )
