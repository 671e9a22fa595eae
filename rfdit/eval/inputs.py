"""What generated pictures are asked to show, picture by picture."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from rfdit.conditioning import Conditioner
from rfdit.data.decode import find_caption, find_label
from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample
from rfdit.data.shards import Shards, resolve_shards
from rfdit.data.skips import SkippedSampleError
from rfdit.data.tar_source import TarReader
from rfdit.randomness import SampleGenerator

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """Class labels or captions, one per picture. settings: where they came from, for the protocol."""

    inputs: list[str] | list[int]
    settings: dict[str, Any]


@runtime_checkable
class Inputs(Protocol):
    """Chosen by `eval/inputs=...`. A picture's depends on its number alone, whatever the others are."""

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> Wanted:
        """Of pictures 0 to samples - 1; raises ValueError for a model that knows no such inputs."""
        ...


class BalancedLabels:
    """Picture i shows class i mod C: of all classes as many, to within one."""

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> Wanted:
        classes = _classes(conditioner, "balanced")
        labels = [i % classes for i in range(samples)]
        return Wanted(labels, {"name": "labels", "order": "balanced", "classes": classes})


class RandomLabels:
    """Classes drawn uniformly, each from (seed, its picture's number)."""

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> Wanted:
        classes = _classes(conditioner, "random")
        draws = SampleGenerator(seed=seed, keys=torch.arange(samples), purpose="label").uniform()
        labels = (draws.double() * classes).long().tolist()
        return Wanted(labels, {"name": "labels", "order": "random", "classes": classes})


class CaptionFile:
    """A text file with one caption per line, from its beginning as often as there are pictures."""

    def __init__(self, *, file: str) -> None:
        self.file = file

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> Wanted:
        """Raises ValueError for a file that is missing or empty."""
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise ValueError(f"eval.inputs.file={self.file} is no file; give one with a caption per line")
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"eval.inputs.file={self.file} has no captions; give a file with one per line")
        return _captions(lines, samples, conditioner, source=path.name)


class ShardCaptions:
    """The captions of tar shards, in their order, as those of a reference set, repeated if they are too few.

    shards: as `data.shards`. caption_key: as of the decoder. cache: as of `TarReader`.
    """

    def __init__(self, *, shards: Shards, caption_key: str = "txt", cache: str | None = None) -> None:
        self.shards, self.caption_key, self.cache = shards, caption_key, cache

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> Wanted:
        """Raises ValueError for shards without captions."""
        read = _read(
            self.shards, samples, lambda raw: find_caption(raw, self.caption_key),
            caption_key=self.caption_key, cache=self.cache, wanted=f"caption {self.caption_key}",
        )  # fmt: skip
        return _captions(read, samples, conditioner, source="shards")


class ShardLabels:
    """The class labels of tar shards, in their order, repeated if they are too few.

    So that pictures have the classes of a reference set as often as its images do, if there are as many
    of them or the shards are not sorted by class: the first labels are taken. Shards of images and of
    cached latents alike will do.

    shards: as `data.shards`. label_key: as of the decoder. cache: as of `TarReader`.
    """

    def __init__(self, *, shards: Shards, label_key: str = "cls", cache: str | None = None) -> None:
        self.shards, self.label_key, self.cache = shards, label_key, cache

    def __call__(self, samples: int, conditioner: Conditioner, *, seed: int) -> Wanted:
        """Raises ValueError for shards without labels, or with one that the model does not know."""
        classes = _classes(conditioner, "shard_labels")
        read = _read(
            self.shards, samples, lambda raw: find_label(raw, self.label_key),
            caption_key=None, cache=self.cache, wanted=f"label {self.label_key}",
        )  # fmt: skip
        if unknown := sorted({label for label in read if not 0 <= label < classes}):
            raise ValueError(
                f"eval.inputs.shards: there is the label {unknown[0]}, and this model knows 0 to {classes - 1}"
            )
        labels = [read[i % len(read)] for i in range(samples)]
        digest = hashlib.sha256(json.dumps(labels).encode()).hexdigest()
        return Wanted(labels, {"name": "labels", "order": "shards", "classes": classes, "sha256": digest})


def _read(
    shards: Shards,
    samples: int,
    find: Callable[[RawSample], T],
    *,
    caption_key: str | None,
    cache: str | None,
    wanted: str,
) -> list[T]:
    """What `find` tells of the first samples; raises ValueError, naming what was wanted, without it."""
    found = resolve_shards(shards, setting="eval.inputs.shards")
    source = TarReader(caption_key=caption_key, cache=cache)(found, filters=Filters())
    read: list[T] = []
    for raw in source.samples(range(min(samples, sum(source.shard_sizes)))):
        try:
            if isinstance(raw, SkippedSampleError):
                raise raw
            read.append(find(raw))
        except SkippedSampleError as error:
            raise ValueError(f"eval.inputs.shards: sample {len(read)} has no {wanted}: {error}") from None
    if not read:
        raise ValueError(f"eval.inputs.shards: {found[0]} has no samples")
    return read


def _classes(conditioner: Conditioner, option: str) -> int:
    """The number of classes that a model knows; raises ValueError for one of captions."""
    classes = getattr(conditioner, "num_classes", None)
    if classes is None:
        raise ValueError(
            f"eval/inputs={option} asks for class labels and this model was trained on captions; give "
            "eval/inputs=captions eval.inputs.file=FILE, or eval/inputs=shards eval.inputs.shards=..."
        )
    return int(classes)


def check_captions(conditioner: Conditioner, setting: str) -> None:
    """Raises ValueError for a model of class labels. setting: what asked for captions."""
    if getattr(conditioner, "num_classes", None) is not None:
        raise ValueError(
            f"{setting} asks for captions and this model was trained on class labels; give eval/inputs=balanced, "
            "random or shard_labels"
        )


def _captions(lines: Sequence[str], samples: int, conditioner: Conditioner, *, source: str) -> Wanted:
    """The lines in turn."""
    check_captions(conditioner, "eval.inputs")
    wanted = [lines[i % len(lines)] for i in range(samples)]
    return Wanted(wanted, caption_settings(wanted, source=source))


def caption_settings(captions: Sequence[str], *, source: str) -> dict[str, Any]:
    """What a protocol says of captions: how many different ones there are, and their hash."""
    digest = hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest()
    return {"name": "captions", "from": source, "different": len(set(captions)), "sha256": digest}
