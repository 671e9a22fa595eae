"""Several sources as one, numbered one after the other."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError
from rfdit.data.source import Source


def joined(sources: Sequence[Source]) -> Source:
    """One source of the samples of several; a single one is itself."""
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


class JoinedSource:
    """The samples of several sources, numbered one source after the other. A `Source`.

    Each source gets its numbers as one stream, so that those that wait for a network or a disk work ahead.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self.shard_sizes: Sequence[int] = [size for source in self._sources for size in source.shard_sizes]
        self._ends = np.cumsum([sum(source.shard_sizes) for source in self._sources])

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        dealt = _Dealt(numbers, self._ends)
        streams = [source.samples(dealt.of(n)) for n, source in enumerate(self._sources)]
        for source in dealt.turns():
            yield next(streams[source])

    def skipped(self) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        for source in self._sources:
            counts.update(source.skipped())
        return counts

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        return np.concatenate([source.image_sizes() for source in self._sources])


class _Dealt:
    """A stream of numbers, dealt to the sources that they belong to; it is read only as far as one of them asks."""

    def __init__(self, numbers: Iterable[int], ends: Int[np.ndarray, "s"]) -> None:
        self._numbers, self._ends = iter(numbers), ends
        self._waiting: list[deque[int]] = [deque() for _ in ends]
        self._turns: deque[int] = deque()

    def _deal(self) -> bool:
        """Deal one number; False at the end of the stream."""
        number = next(self._numbers, None)
        if number is None:
            return False
        source = int(np.searchsorted(self._ends, number, side="right"))
        start = int(self._ends[source - 1]) if source else 0
        self._waiting[source].append(number - start)
        self._turns.append(source)
        return True

    def of(self, source: int) -> Iterator[int]:
        """The numbers of a source, counted from its own first sample."""
        while True:
            while not self._waiting[source]:
                if not self._deal():
                    return
            yield self._waiting[source].popleft()

    def turns(self) -> Iterator[int]:
        """The source of each number, in order."""
        while self._turns or self._deal():
            yield self._turns.popleft()
