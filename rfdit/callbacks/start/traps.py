"""Settings that cost an evening: a sentence for each, before the first step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rfdit.data.stream.description import DataDescription

MANY_TOKENS = 4096  # of an image; attention takes most of the time beyond


@dataclass(frozen=True)
class Start:
    """What traps depend on.

    data: None for a data module of another kind. tokens: those of an image, if the data is known.
    downsampling: that of the autoencoder. reads_captions: the model is trained on captions.
    batch: samples of an optimiser step. monitors: the metrics by which best checkpoints are kept.
    validates: False where validation is switched off.
    """

    data: DataDescription | None
    tokens: int | None
    downsampling: int
    reads_captions: bool
    batch: int
    monitors: Sequence[str]
    validates: bool


def traps(start: Start) -> Iterator[str]:
    """A sentence, with the setting to change, about each trap that a run is in."""
    if start.data is None:
        return
    yield from _tokens(start)
    yield from _sizes(start, start.data)
    if start.reads_captions and start.data.captions is not None:
        yield start.data.captions
    metric = next((name for name in start.monitors if name.startswith("val/")), None)
    if metric is not None and start.data.val_samples is None and start.validates:
        yield (
            f"without data.val_shards there is no {metric}, and no best.ckpt, only last.ckpt: set a part of the images "
            "apart as data.val_shards"
        )


def _tokens(start: Start) -> Iterator[str]:
    if start.tokens is None or start.tokens < MANY_TOKENS or start.downsampling > 1:
        return
    yield (
        f"an image has {start.tokens:,} tokens, since autoencoder=identity trains in pixels: with autoencoder=sd it "
        f"has {start.tokens // 64:,}, and a smaller data.resolution or a larger patch makes fewer, too"
    )


def _sizes(start: Start, data: DataDescription) -> Iterator[str]:
    samples = f"the {data.samples:,} samples of data.shards"
    if start.batch > data.samples:
        yield (
            f"a step takes {start.batch:,} samples, more than {samples}, and so has some of them twice: give a smaller "
            "data.batch_size"
        )
    batches = -(-data.samples // data.batch_size)
    if data.num_workers > max(batches, 1):
        yield (
            f"data.num_workers={data.num_workers} is more than {samples} divided by data.batch_size={data.batch_size}, "
            f"so that workers only read ahead what others have: give {batches}"
        )
