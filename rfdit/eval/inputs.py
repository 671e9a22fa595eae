"""Labels and captions of the images that an evaluation generates."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from rfdit.conditioning import Conditioner
from rfdit.data.decode import find_caption, find_label
from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample, using
from rfdit.data.shards import Shards, resolve_shards
from rfdit.data.skips import SkippedSampleError, listed
from rfdit.data.tar.source import TarReader
from rfdit.randomness import SampleGenerator
from rfdit.storage.checksum import json_digest
from rfdit.storage.text import read_text, text_lines

T = TypeVar("T")


@dataclass(frozen=True)
class ChosenInputs:
    """Class labels or captions, one per image. settings: their origin, for the protocol."""

    inputs: list[str] | list[int]
    settings: dict[str, Any]


@runtime_checkable
class InputSource(Protocol):
    """Chosen by `eval/inputs=...`. The input of image i depends on i, not on the number of images."""

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> ChosenInputs:
        """Inputs of images 0 to samples - 1; raises ValueError for a model that does not take them."""
        ...


class BalancedLabels:
    """Image i shows class i mod C, so that all classes are equally frequent, to within one image."""

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> ChosenInputs:
        classes = _num_classes(conditioner, "balanced")
        labels = [i % classes for i in range(samples)]
        return ChosenInputs(labels, {"name": "labels", "order": "balanced", "classes": classes})


class RandomLabels:
    """Classes drawn uniformly, that of image i from (seed, i)."""

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> ChosenInputs:
        classes = _num_classes(conditioner, "random")
        draws = SampleGenerator(seed=seed, keys=torch.arange(samples), purpose="label").uniform()
        labels = (draws.double() * classes).long().tolist()
        return ChosenInputs(labels, {"name": "labels", "order": "random", "classes": classes})


class CaptionFile:
    """The lines of a text file in turn, repeated if there are more images than lines."""

    def __init__(self, *, file: str) -> None:
        self.file = file

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> ChosenInputs:
        """Raises ValueError for a file that is missing or empty."""
        wanted = "a text file with one caption per line"
        lines = text_lines(read_text(self.file, setting="eval.inputs.file", wanted=wanted))
        if not lines:
            raise ValueError(f"eval.inputs.file={self.file} has no captions; give a file with one per line")
        return chosen_captions(_repeated(lines, samples), conditioner, source=Path(self.file).name)


class ShardCaptions:
    """The captions of tar shards in their order, repeated if there are more images.

    shards: as `data.shards`. caption_key: as for the decoder. cache: as for `TarReader`.
    """

    def __init__(self, *, shards: Shards, caption_key: str = "txt", cache: str | None = None) -> None:
        self.shards, self.caption_key, self.cache = shards, caption_key, cache

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> ChosenInputs:
        """Raises ValueError for shards without captions; samples without one are left out."""
        reader = TarReader(caption_key=self.caption_key, cache=self.cache)
        captions = _read(self.shards, reader, samples, "caption", find_caption, self.caption_key)
        return chosen_captions(_repeated(captions, samples), conditioner, source="shards")


class ShardLabels:
    """The class labels of tar shards in their order, repeated if there are more images.

    The first labels are taken. Images therefore have the classes of a reference set in its proportions if
    there are as many of them, or if the shards are not sorted by class. Shards of images and of cached
    latents both work.

    shards: as `data.shards`. label_key: as for the decoder. cache: as for `TarReader`.
    """

    def __init__(self, *, shards: Shards, label_key: str = "cls", cache: str | None = None) -> None:
        self.shards, self.label_key, self.cache = shards, label_key, cache

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> ChosenInputs:
        """Raises ValueError for shards without labels, or with one that the model does not know.

        Samples without a label are left out.
        """
        classes = _num_classes(conditioner, "shard_labels")
        reader = TarReader(caption_key=None, cache=self.cache)
        found = _read(self.shards, reader, samples, "label", find_label, self.label_key)
        if unknown := sorted({label for label in found if not 0 <= label < classes}):
            raise ValueError(
                f"eval.inputs.shards: the label {unknown[0]} occurs, and this model knows 0 to {classes - 1}"
            )
        labels = _repeated(found, samples)
        settings = {
            "name": "labels",
            "order": "shards",
            "classes": classes,
            "sha256": json_digest(labels, digits=64),
        }
        return ChosenInputs(labels, settings)


def chosen_captions(
    captions: list[str], conditioner: Conditioner, *, source: str, setting: str = "eval.inputs"
) -> ChosenInputs:
    """Captions as inputs; raises ValueError, naming `setting`, for a model of class labels."""
    if conditioner.num_classes is not None:
        raise ValueError(
            f"{setting} asks for captions and this model was trained on class labels; give eval/inputs=balanced, "
            "random or shard_labels"
        )
    different = len(set(captions))
    return ChosenInputs(
        captions,
        {
            "name": "captions",
            "from": source,
            "different": different,
            "sha256": json_digest(captions, digits=64),
        },
    )


def _num_classes(conditioner: Conditioner, option: str) -> int:
    """The number of classes that a model knows; raises ValueError for a model of captions."""
    if conditioner.num_classes is None:
        raise ValueError(
            f"eval/inputs={option} asks for class labels and this model was trained on captions; give "
            "eval/inputs=captions eval.inputs.file=FILE, or eval/inputs=shards eval.inputs.shards=..."
        )
    return conditioner.num_classes


def _read(
    shards: Shards, reader: TarReader, samples: int, kind: str, find: Callable[[RawSample, str], T], key: str
) -> list[T]:
    """The captions or labels of the first samples that have one; warns of those that do not, as training counts them.

    Raises ValueError, naming `kind`, if there is none.
    """
    paths = resolve_shards(shards, setting="eval.inputs.shards")
    source = reader(paths, filters=Filters())
    found: list[T] = []
    skipped = Counter(source.skipped())
    first: SkippedSampleError | None = None
    for raw in source.samples(range(sum(source.shard_sizes))):
        if len(found) == samples:
            break
        try:
            with using(raw) as sample:
                found.append(find(sample, key))
        except SkippedSampleError as error:
            skipped[error.reason] += 1
            first = first or error
    if not found:
        why = f"{listed(skipped)}; the first: {first}" if first else listed(skipped) or "they are empty"
        raise ValueError(
            f"eval.inputs.shards: no sample of {paths[0]} and so on has a {kind} at {key}: {why}"
        )
    if skipped:
        warnings.warn(f"eval.inputs.shards: left out: {listed(skipped)}", stacklevel=3)
    return found


def _repeated(values: Sequence[T], samples: int) -> list[T]:
    return [values[i % len(values)] for i in range(samples)]
