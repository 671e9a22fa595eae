"""What every kind of data is to a stream: numbered samples that can be read in any order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError


@runtime_checkable
class Source(Protocol):
    """Raw samples, numbered through: those of the first logical shard, then of the second, ...

    A source is pickled or forked into DataLoader workers, so it opens files and connections when
    they are first used in a process.

    shard_sizes: usable samples in each logical shard. What lies in one shard is cheap to read together.
    """

    shard_sizes: Sequence[int]

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        """One for each number, in the order asked; one that cannot be read is the error that says why.

        `numbers` may be endless. A source that waits for something (a network) takes numbers ahead
        of what it has yielded, as many as it works on at once.
        """
        ...

    def skipped(self) -> Mapping[str, int]:
        """What was left out when it was opened, by reason: filtered, or damaged beyond being a sample."""
        ...

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        """(height, width) of each sample's image, for aspect-ratio buckets.

        Raises ValueError if the reader was not asked for them.
        """
        ...


@runtime_checkable
class SubstitutingSource(Source, Protocol):
    """A source that waits for something, and so does not wait to be asked for substitutes as well."""

    def samples_or_substitutes(
        self, numbers: Iterable[tuple[int, Iterator[int]]]
    ) -> Iterator[RawSample | SkippedSampleError]:
        """As `samples`, with the numbers that can stand in for each, in the order in which they are tried.

        An error brings the first substitute that can be read, if it was found.
        """
        ...


@runtime_checkable
class Reader(Protocol):
    """Opens shards of one kind; what a new data source implements.

    Opening may be slow (indices are built), so it is done once per machine before the other ranks
    and keeps what it found in a cache folder; after that it must be fast and give the same on every rank.

    suffixes: of the files that a folder stands for; none if a folder is itself a shard.
    """

    suffixes: Sequence[str]

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> Source:
        """shards: as `expand_shards` gives them. image_sizes: whether `Source.image_sizes` is needed.

        Raises ValueError, naming the setting, if nothing usable is left.
        """
        ...
