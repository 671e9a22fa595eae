"""A survey of a data setting: its samples read through, measured and counted, before a run trains on them."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from rfdit.counted import counted
from rfdit.data.decode import image_bytes, image_size
from rfdit.data.sample import Decoder, Sample, using
from rfdit.data.skips import SkippedSampleError
from rfdit.data.source import Source

CLASSES_SHOWN = 10


@dataclass
class Survey:
    """The samples of a source, some of which were decoded.

    samples: those that the source has. left_out: counts, by reason, of those that it left out when it was opened.
    read: number of samples that were decoded, spread evenly over all. unusable: counts, by reason, of those among
    them that could not be used, and `first`, the first of them in words.
    formats: counts of the images by suffix. sizes: (height, width) of each image as it is in its file.
    captions: of each sample, all that it has. labels: of the samples that have one.
    labelled: the captions of each label; where there is but one, it is the name of the class.
    images, titles: some images as training sees them, and the texts below them.
    """

    samples: int
    left_out: Counter[str]
    read: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    first: str | None = None
    formats: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    captions: list[Sequence[str]] = field(default_factory=list)
    labels: Counter[int] = field(default_factory=Counter)
    labelled: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    images: list[UInt8[Tensor, "3 H W"]] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)

    def lines(self, size: tuple[int, int], batch_size: int) -> list[tuple[str, str]]:
        """What there is to say of each part of the survey, by name. size: (height, width) in training."""
        steps = -(-self.samples // batch_size)
        found = [
            (
                "samples",
                f"{self.samples:,}, an epoch of {counted(steps, 'step')} with data.batch_size={batch_size}",
            )
        ]
        if self.left_out:
            found.append(("left out", _listed(self.left_out)))
        found.append(("read", f"{self.read:,} of them, of which {self._usable:,} can be used"))
        if self.unusable:
            found.append(("unusable", f"{_listed(self.unusable)}; the first: {self.first}"))
        if self.formats:
            found.append(("formats", _listed(self.formats)))
        if self.sizes:
            found.append(("sizes", self._sizes(size)))
        if self.captions:
            found.append(("captions", self._captions()))
        if self.labels:
            found.append(("classes", self._classes()))
        return found

    @property
    def _usable(self) -> int:
        return self.read - self.unusable.total()

    def _sizes(self, size: tuple[int, int]) -> str:
        sides = sorted(self.sizes, key=lambda each: each[0] * each[1])
        small = sum(height < size[0] or width < size[1] for height, width in sides)
        middle = sides[len(sides) // 2]
        text = f"{_by(sides[0])} to {_by(sides[-1])} (height x width), median {_by(middle)}"
        if sides[0] == sides[-1]:
            text = f"all {_by(middle)} (height x width)"
        if small:
            text += (
                f"; {small / len(sides):.1%} are smaller than data.resolution={_by(size)} and are enlarged"
            )
        return text

    def _captions(self) -> str:
        texts = [text for each in self.captions for text in each]
        lengths = sorted(map(len, texts))
        counts = Counter(map(len, self.captions))
        text = f"{lengths[0]:,} to {lengths[-1]:,} characters, median {statistics.median_low(lengths):,}"
        if max(counts) > 1:
            text += f"; {min(counts)} to {max(counts)} for each image"
        different = len(set(texts))
        if different < len(texts):
            text += f"; {different:,} of {len(texts):,} are different"
        return text

    def _classes(self) -> str:
        shown = self.labels.most_common(CLASSES_SHOWN)
        rest = len(self.labels) - len(shown)
        text = ", ".join(f"{self._class(label)} ({n:,})" for label, n in shown)
        text += f" and {rest:,} more" * (rest > 0)
        return f"{len(self.labels):,}, {min(self.labels)} to {max(self.labels)}: {text}"

    def _class(self, label: int) -> str:
        name = self.labelled[label]
        return f"{label} {next(iter(name))}" if len(name) == 1 else f"{label}"


def survey(source: Source, decoder: Decoder, size: tuple[int, int], *, most: int, images: int) -> Survey:
    """Read samples of a source that are spread evenly, and decode them as training does.

    size: (height, width) in training. most: number of samples to read. images: number of images to keep.
    """
    total = sum(source.shard_sizes)
    numbers = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64)).tolist()
    found = Survey(samples=total, left_out=Counter(source.skipped()))
    kept = set(np.linspace(0, len(numbers) - 1, min(images, len(numbers))).round().astype(int).tolist())
    for place, raw in enumerate(source.samples(iter(numbers))):
        found.read += 1
        try:
            with using(raw) as files:
                sample = decoder(files, size)
                data = image_bytes(files)
        except SkippedSampleError as skipped:
            found.unusable[str(skipped.reason)] += 1
            found.first = found.first or str(skipped)
            continue
        if data is not None:
            found.formats.update(f".{name}" for name in files if files[name] is data)
            found.sizes += filter(None, [image_size(data)])
        _note(found, sample, keep=place in kept)
    return found


def _note(found: Survey, sample: Sample, *, keep: bool) -> None:
    captions = list(sample.captions) or [text for text in [sample.caption] if text is not None]
    if captions:
        found.captions.append(captions)
    if sample.label is not None:
        found.labels[sample.label] += 1
        found.labelled[sample.label].update(captions)
    if keep and sample.image is not None:
        found.images.append(sample.image)
        label = [str(sample.label)] if sample.label is not None else []
        found.titles.append(": ".join([*label, *captions[:1]]))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in counts.most_common())
