"""One sample: raw files, then decoded, then a row of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from rfdit.batch import Batch, Condition
from rfdit.data.skips import SkippedSampleError

# A sample as webdataset reads it: "__key__", the shard it comes from in "__url__", and the bytes of each file by its
# extension. Sources of other kinds than shards leave out "__url__".
RawSample = Mapping[str, str | bytes]
MAX_SAMPLE = 1 << 28  # bytes of the files of a sample; the largest image that is decoded has 200 MB


@contextmanager
def using(found: RawSample | SkippedSampleError) -> Iterator[RawSample]:
    """Context of work on a sample as a source yields it.

    Raises SkippedSampleError, the one that the source yielded or one of the work, with the sample's name.
    """
    if isinstance(found, SkippedSampleError):
        raise found
    try:
        yield found
    except SkippedSampleError as skipped:
        place = cast(list[str], [found[name] for name in ("__key__", "__url__") if name in found])
        skipped.sample = skipped.sample or " of ".join(place)
        raise


@dataclass(frozen=True)
class Sample:
    """One decoded sample.

    image: pixels, from sources of images.
    rejected: of a pair, the pixels of the image to which `image` is preferred.
    moments: the autoencoder's output before sampling and normalisation, from sources of cached latents.
    caption, label: if the decoder is set to find them.
    captions: several captions, one of which the stream draws in place of `caption`.
    condition: one row of text features, from sources that have them cached.
    features: those of the image's patches, likewise.
    micro: numbers of micro-conditioning, if the decoder is set to find them.
    noise: of recorded pairs, seed and key of the noise that the latent was made from.
    """

    key: str
    image: UInt8[Tensor, "3 H W"] | None = None
    moments: Float[Tensor, "m h w"] | None = None
    caption: str | None = None
    captions: Sequence[str] = ()
    label: int | None = None
    condition: Condition | None = None
    features: Float[Tensor, "f rows columns"] | None = None
    micro: tuple[float, ...] | None = None
    noise: tuple[int, int] | None = None
    rejected: UInt8[Tensor, "3 H W"] | None = None


@runtime_checkable
class Decoder(Protocol):
    """Decodes raw samples."""

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Sample:
        """The decoded sample. size: (height, width) of its image.

        Raises SkippedSampleError with the reason for a sample that cannot be used.
        """
        ...


@runtime_checkable
class CacheDecoder(Decoder, Protocol):
    """A decoder of cached encodings, which must be those of the run's encoders, at the run's sizes."""

    def expecting(self, weights: Mapping[str, Mapping[str, str]]) -> Decoder:
        """This decoder with the weights that the run has loaded, as `weights_of` gives them."""
        ...

    def check(
        self,
        shards: Sequence[str],
        size: tuple[int, int],
        buckets: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Raises ValueError if the shards' encodings are not those of the run, at this image size.

        buckets: all sizes of images, if there are several.
        """
        ...


@runtime_checkable
class PairDecoder(Decoder, Protocol):
    """A decoder of pairs of images. rejected: what names the second image of a pair; None reads the first alone."""

    rejected: str | None


def collate(samples: Sequence[Sample], positions: Int[Tensor, "b"]) -> Batch:
    """The batch of samples of one shape, in order."""
    images = [sample.image for sample in samples if sample.image is not None]
    rejected = [sample.rejected for sample in samples if sample.rejected is not None]
    moments = [sample.moments for sample in samples if sample.moments is not None]
    features = [sample.features for sample in samples if sample.features is not None]
    captions = [sample.caption for sample in samples if sample.caption is not None]
    labels = [sample.label for sample in samples if sample.label is not None]
    micro = [sample.micro for sample in samples if sample.micro is not None]
    noise = [sample.noise for sample in samples if sample.noise is not None]
    conditions = [sample.condition for sample in samples if sample.condition is not None]
    for name, found in (("the noise of pairs", noise), ("features of the images", features)):
        if 0 < len(found) < len(samples):
            raise ValueError(
                f"data.shards: some of the samples have {name} and others have not; train on latents of one kind"
            )
    # In a worker, PyTorch's collation stacks into shared memory, which saves a copy.
    return Batch(
        images=default_collate(images) if images else None,
        rejected=default_collate(rejected) if rejected else None,
        moments=default_collate(moments) if moments else None,
        positions=positions,
        captions=captions or None,
        labels=torch.tensor(labels) if labels else None,
        condition=Condition.join(conditions) if conditions else None,
        features=default_collate(features) if features else None,
        micro=torch.tensor(micro) if micro else None,
        noise=torch.tensor(noise) if noise else None,
        keys=[sample.key for sample in samples],
    )
