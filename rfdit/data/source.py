"""The Protocols of a data source: numbered samples that can be read in any order."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError


@runtime_checkable
class Source(Protocol):
    """Raw samples, numbered consecutively: those of the first logical shard, then of the second, ...

    A source is pickled or forked into DataLoader workers, so it opens files and connections when
    they are first used in a process.

    shard_sizes: usable samples in each logical shard. Samples of one shard are cheap to read together.
    """

    shard_sizes: Sequence[int]

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        """One sample for each number, in order; for one that cannot be read, the error with the reason.

        `numbers` may be endless. A source that waits for a network takes numbers ahead of the samples
        that it has yielded, as many as it works on at the same time.
        """
        ...

    def skipped(self) -> Mapping[str, int]:
        """Counts, by reason, of the samples that were left out when the source was opened: filtered or damaged."""
        ...

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        """(height, width) of each sample's image, for aspect-ratio buckets.

        Raises ValueError if the source was opened without image_sizes.
        """
        ...


@runtime_checkable
class SubstitutingSource(Source, Protocol):
    """A source that waits for a network, and therefore looks for substitutes itself before they are needed."""

    def samples_or_substitutes(
        self, numbers: Iterable[tuple[int, Iterator[int]]]
    ) -> Iterator[RawSample | SkippedSampleError]:
        """The same as `samples`, but each number comes with those of its substitutes, in the order of trial.

        An error carries the first substitute that could be read, if there is one.
        """
        ...


@runtime_checkable
class RemarksOnCaptions(Protocol):
    """A source whose captions may not be what its user takes them for.

    caption_remark: a sentence about them for a run that trains on captions; None if there is nothing to say.
    """

    caption_remark: str | None


@runtime_checkable
class ShardFilesSource(Source, Protocol):
    """A source whose logical shards are files, local or copied to this machine when they are needed."""

    def open_shard(self, shard: int) -> BinaryIO:
        """The whole file of a shard; raises UnreadableShardError if it cannot be read."""
        ...

    def check_room(self, shards: int) -> None:
        """Warn if the copies of so many shards, which are read in turn, do not fit at the same time."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Opens shards of one kind; a new data source implements this and `Source`.

    The first opening may be slow (it builds indexes): one process of each machine does it before the
    others, and caches the result. After that it must be fast, and give the same on every rank.

    suffixes: suffixes of the files that a folder stands for; none if a folder is a shard itself.
    """

    suffixes: Sequence[str]

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> Source:
        """The source of shards as `expand_shards` gives them. image_sizes: make `Source.image_sizes` available.

        Raises ValueError, naming the setting, if nothing usable is left.
        """
        ...


@runtime_checkable
class RecordingReader(Reader, Protocol):
    """A reader that records, for all processes of a run, which of its samples can be had."""

    def without_record(self) -> Reader:
        """The same reader without the record, for commands that count these samples themselves."""
        ...


@dataclass(frozen=True)
class IndexReport:
    """The contents of indexes: the number of samples, and by reason those that are left out.

    problems: the reasons why some shards have no index.
    """

    samples: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def __add__(self, other: "IndexReport") -> "IndexReport":
        skipped = Counter(self.skipped) + Counter(other.skipped)
        return IndexReport(self.samples + other.samples, skipped, (*self.problems, *other.problems))


@runtime_checkable
class IndexingReader(Reader, Protocol):
    """A reader that can write an index beside each shard, with which readers elsewhere start sooner."""

    def write_indexes(
        self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False, out: str | None = None
    ) -> IndexReport:
        """Write the indexes that are missing or stale; returns what all of them hold.

        filters, image_sizes: as for opening the shards.
        out: a local folder for the indexes; None writes them beside the shards.
        Raises ValueError if `out` cannot take them.
        """
        ...
