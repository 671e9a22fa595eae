"""The data of a run in numbers, for the summary at its start."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DataDescription:
    """What a data module has opened.

    samples: those of training. epoch: samples after which each has come as often as `data.repeats` says; those of
    training without repeats, None with weights, under which sets have epochs of their own.
    val_samples: those of validation; None without.
    left_out: counts, by reason, of the samples that were left out when the data was opened.
    size: (height, width) of an image. batch_size: samples a step on each device. num_workers: of each device.
    captions: a sentence about captions that may not be what is wanted; None if there is nothing to say.
    """

    samples: int
    epoch: int | None
    val_samples: int | None
    left_out: Mapping[str, int]
    size: tuple[int, int]
    batch_size: int
    num_workers: int
    captions: str | None = None
