"""Packs any source into tar shards, so that data behind a network or on a slow disk is fetched only once."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfdit.counted import counted
from rfdit.data.decode import decode_image, find_metadata, image_bytes, image_size
from rfdit.data.numbers import plain_json
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.source import Source
from rfdit.data.tar.write import write_tar
from rfdit.progress import ProgressDisplay, tracked
from rfdit.storage.atomic import remove_abandoned, write_json
from rfdit.storage.checked import (
    DamagedFileError,
    read_checked_json,
    structure,
    whole_numbers,
    write_checked_json,
)
from rfdit.storage.finished import read_record, write_record
from rfdit.storage.locks import only_process

VERIFIED_SIZE = (64, 64)  # the size to which images are decoded to verify them

# Causes that lie in the network and not in the URL.
OUTAGE = {SkipReason.FETCH_CONNECTION, SkipReason.FETCH_TIMEOUT}

FORMAT = 2  # number of the format of the files beside the shards


@dataclass(frozen=True)
class PackCounts:
    """Numbers of samples that were packed, and of those that were left out by reason."""

    packed: int
    left_out: Mapping[str, int]

    def __post_init__(self) -> None:
        if not whole_numbers([self.packed, *self.left_out.values()]):
            raise TypeError("these are not counts")

    def __add__(self, other: "PackCounts") -> "PackCounts":
        return PackCounts(self.packed + other.packed, Counter(self.left_out) + Counter(other.left_out))

    @property
    def samples(self) -> int:
        """Number of all samples."""
        return self.packed + sum(self.left_out.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `PackCounts(**data)` takes, the most frequent reasons first."""
        return {"packed": self.packed, "left_out": dict(Counter(self.left_out).most_common())}

    def summary(self) -> str:
        """`6 of 10 samples packed; left out: 4 corrupt_image`."""
        causes = ", ".join(f"{count} {reason}" for reason, count in Counter(self.left_out).most_common())
        return f"{self.packed} of {counted(self.samples, 'sample')} packed{f'; left out: {causes}' if causes else ''}"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Writes the samples of a source as tar shards into a folder.

    out: the folder to write to. NUMBER.tar holds a fixed range of the source's samples; NUMBER.json beside
        it is its record, and counts the samples of the range that were packed or skipped.
    samples_per_shard: samples in a range. Those that cannot be used make a shard smaller.
    verify: decode every image, and keep only samples whose image decodes; compare the checksums of shards
        that an earlier start has written, instead of their sizes alone.
    plan: plain data that the ranges depend on; a folder takes one plan only.
    """

    source: Source
    out: Path
    samples_per_shard: int
    verify: bool
    plan: dict[str, Any]

    def __call__(self) -> str:
        """Pack the shards that are not done yet; returns a sentence about the samples of all shards.

        Raises ValueError if `out` holds other data, or another process is packing into it, or if the
        network fails.
        """
        with only_process(self.out / "pack.lock", setting="out"):
            self._keep_plan()
            remove_abandoned(self.out)
            self._pack_rest()
            return self._report()

    @property
    def ranges(self) -> list[range]:
        """The numbers of each shard."""
        total, size = sum(self.source.shard_sizes), self.samples_per_shard
        return [range(first, min(first + size, total)) for first in range(0, total, size)]

    def done(self, shard: int, *, checksum: bool) -> PackCounts | None:
        """The counts of a shard that is done; None for one to pack: its record or its tar is missing or not whole."""
        record = read_record(self._record(shard), self._tar(shard), checksum=checksum)
        try:
            with structure(self._record(shard)):
                return None if record is None else PackCounts(**record)
        except DamagedFileError:
            return None

    def _record(self, shard: int) -> Path:
        """The file that marks a shard as done."""
        return self.out / f"{shard:05d}.json"

    def _tar(self, shard: int) -> Path:
        return self.out / f"{shard:05d}.tar"

    def _keep_plan(self) -> None:
        """Write the plan, or compare it with that of an earlier run."""
        path = self.out / "pack.json"
        if path.exists():
            try:
                known = read_checked_json(path)
            except DamagedFileError as error:
                raise ValueError(f"out={self.out} cannot be continued: {error}; give another out") from None
            if different := [name for name in self.plan if self.plan[name] != known.get(name)]:
                raise ValueError(
                    f"out={self.out} was packed with other {', '.join(different)}, as its pack.json says; "
                    "give another out"
                )
        elif any(self.out.glob("*.tar")):
            raise ValueError(f"out={self.out} already has shards that were not packed here; give another out")
        write_checked_json(path, self.plan)

    def _pack_rest(self) -> None:
        ranges = self.ranges
        shards = tracked(range(len(ranges)), "checking", total=len(ranges), unit="shards")
        todo = [shard for shard in shards if self.done(shard, checksum=self.verify) is None]
        # One stream for all shards, so that fetching goes on from one to the next.
        samples = iter(self.source.samples(itertools.chain.from_iterable(ranges[shard] for shard in todo)))
        total = sum(map(len, ranges))
        done = total - sum(len(ranges[shard]) for shard in todo)
        with ProgressDisplay("packing", total=total, unit="samples", completed=done) as progress:
            for shard in todo:
                part = itertools.islice(samples, len(ranges[shard]))
                self._pack_shard(shard, _advancing(progress, part))

    def _pack_shard(self, shard: int, samples: Iterable[RawSample | SkippedSampleError]) -> None:
        """Write one shard, if it has usable samples, and count the others by their reason."""
        left_out: Counter[str] = Counter()

        def survivors() -> Iterator[RawSample]:
            for sample in samples:
                try:
                    yield usable(sample, verify=self.verify)
                except SkippedSampleError as error:
                    left_out[str(error.reason)] += 1

        written = write_tar(self._tar(shard), survivors())
        if not written and left_out and left_out.keys() <= OUTAGE:
            raise ValueError(
                f"data.shards: none of the {left_out.total()} URLs of shard {shard} could be reached; is the network "
                "down? The shard is left for the next call"
            )
        write_record(self._record(shard), self._tar(shard), PackCounts(written, left_out).as_dict())

    def _report(self) -> str:
        """Write report.json over all shards that are done; returns a sentence with the same counts."""
        # Those that never became a number of the source; filters drop samples on purpose.
        never = {reason: n for reason, n in self.source.skipped().items() if reason in set(SkipReason)}
        counts = PackCounts(0, never)
        for shard in range(len(self.ranges)):
            if (packed := self.done(shard, checksum=False)) is not None:
                counts += packed
        write_json(self.out / "report.json", {"samples": counts.samples} | counts.as_dict())
        shards = list(self.out.glob("*.tar"))
        where = f"{counted(len(shards), 'shard')} in {self.out}"
        return f"{counts.summary()}; they are in {where}, and report.json counts the others"


def usable(sample: RawSample | SkippedSampleError, *, verify: bool) -> dict[str, str | bytes]:
    """The sample; with `verify`, its image decodes and its JSON, if it has one, has the image's true size.

    Raises SkippedSampleError for a sample that cannot be used.
    """
    if isinstance(sample, SkippedSampleError):
        raise sample
    if (image := image_bytes(sample)) is None:
        raise SkippedSampleError(SkipReason.MISSING_IMAGE)
    files = dict(sample)
    if verify:
        decode_image(image, VERIFIED_SIZE)
        if "json" in files:
            metadata = find_metadata(sample)
            if size := image_size(image):
                metadata |= {"height": size[0], "width": size[1]}
            files["json"] = json.dumps(plain_json(metadata), ensure_ascii=False).encode()
    return files


def _advancing(
    progress: ProgressDisplay, samples: Iterable[RawSample | SkippedSampleError]
) -> Iterator[RawSample | SkippedSampleError]:
    """The samples; the progress display advances after each."""
    for sample in samples:
        yield sample
        progress.advance(1)
