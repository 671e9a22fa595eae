"""The first samples of a source, for trial runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError
from rfdit.data.source import Source


class FirstSamples:
    """The first samples of a source, with its numbers. A `Source`.

    count: their number; a source with fewer is used whole.
    """

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        ends = np.cumsum([0, *source.shard_sizes]).clip(max=count)
        self.shard_sizes: Sequence[int] = np.diff(ends).tolist()

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        return self._source.samples(numbers)

    def skipped(self) -> Mapping[str, int]:
        return self._source.skipped()

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        return self._source.image_sizes()[: sum(self.shard_sizes)]
