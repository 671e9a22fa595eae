"""A minimal reader of tar shards, for tests of the layers on top of readers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import webdataset

from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError


class ListSource:
    """Samples in memory."""

    def __init__(self, shards: Sequence[str], broken: str | None) -> None:
        self._samples = [
            {name: value for name, value in sample.items() if name == "__key__" or not name.startswith("__")}
            for sample in webdataset.WebDataset(
                list(shards), shardshuffle=False, empty_check=False, nodesplitter=iter
            )
        ]
        self._broken = broken
        self.shard_sizes = [len(self._samples)]

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        for number in numbers:
            if self._samples[number]["__key__"] == self._broken:
                raise KeyboardInterrupt
            yield self._samples[number]

    def skipped(self) -> Mapping[str, int]:
        return {}

    def image_sizes(self) -> np.ndarray:
        raise ValueError("these samples are read without the sizes of their images")


class ListReader:
    """Reads whole shards; reading the sample `broken` is interrupted."""

    suffixes = (".tar",)

    def __init__(self, *, broken: str | None = None) -> None:
        self.broken = broken

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> ListSource:
        try:
            return ListSource(shards, self.broken)
        except Exception as error:
            raise ValueError(f"data.shards: {shards[0]} cannot be read: {error}") from error
