"""From a plan to batches: what a DataLoader worker does."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.data import IterableDataset, get_worker_info

from rfdit.batch import Batch
from rfdit.data.plan import Plan, PlannedBatch
from rfdit.data.sample import Decoder, RawSample, Sample, collate
from rfdit.data.skips import SkipCounts, SkippedSampleError, SkipReason
from rfdit.data.source import Source, SubstitutingSource
from rfdit.randomness import SampleGenerator

TOGETHER = 4  # substitutes that a source which waits is asked for at once, where it has not found one
MANY, MAX_BAD = 1000, 0.95  # samples in turn, and the share of bad ones among them that ends a run


class Stream(IterableDataset[Batch]):
    """Reads, decodes and batches the samples of a plan; a DataLoader adds workers.

    seed: with a sample's position it decides whether its image is mirrored.
    rank: whose batches of the plan these are.
    workers: of the DataLoader that reads this stream; 0 is the process itself. Worker w of W makes the
        batches w, w + W, ..., which the DataLoader takes in turn: any W gives the same sequence.
    flip: mirror each image with probability 1/2.

    Samples that cannot be used are counted in `skips`, for the current iteration. An endless plan
    replaces each by another of its shard, so that the position of every other sample stays what it is;
    a finite one leaves it out. Only if other ranks have a batch where all samples of this one are bad,
    a substitute stands in for them, so that nobody waits for ever.

    Raises ValueError where no usable sample is found for a place, or nearly all are bad for long.
    """

    def __init__(
        self,
        *,
        source: Source,
        plan: Plan,
        decoder: Decoder,
        seed: int,
        rank: int = 0,
        workers: int = 0,
        flip: bool = False,
    ) -> None:
        self.source, self.plan, self.decoder, self.seed = source, plan, decoder, seed
        self.rank, self.workers, self.flip = rank, workers, flip
        self.skips = SkipCounts(workers=workers)
        self._bad: Counter[SkipReason] = Counter()  # of the last samples
        self._seen = 0

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        assert workers == max(self.workers, 1), "workers must be the DataLoader's num_workers"
        self.skips.reset(worker=worker)
        self._bad, self._seen = Counter(), 0
        # The source runs ahead of the batches, as far as it needs to.
        batches, ahead = itertools.tee(self.plan.batches(self.rank, worker, workers))
        found = self._found(ahead)
        for batch in batches:
            read = self._read(batch, list(itertools.islice(found, len(batch.indices))), worker)
            if read is not None:
                yield read

    def _found(self, batches: Iterator[PlannedBatch]) -> Iterator[RawSample | SkippedSampleError]:
        if self.plan.substitutes and isinstance(self.source, SubstitutingSource):
            return self.source.samples_or_substitutes(
                (number, batch.substitutes(row))
                for batch in batches
                for row, number in enumerate(batch.numbers)
            )
        return self.source.samples(number for batch in batches for number in batch.numbers)

    def _read(
        self, batch: PlannedBatch, found: list[RawSample | SkippedSampleError], worker: int
    ) -> Batch | None:
        samples: dict[int, Sample] = {}
        reasons: Counter[SkipReason] = Counter()
        for row, raw in enumerate(found):
            try:
                samples[row] = self._decode(raw, batch)
            except SkippedSampleError as skipped:
                self.skips.add(skipped.reason, worker=worker)
                reasons[skipped.reason] += 1
                if self.plan.substitutes:
                    samples[row] = self._substitute(batch, row, skipped)
        self._give_up_if_bad(reasons, len(found))
        if not samples and not self.plan.in_step:
            return None
        if not samples:
            samples[0] = self._substitute(batch, 0, SkippedSampleError(reasons.most_common(1)[0][0]))
        positions = torch.tensor([batch.positions[row] for row in samples])
        return self._flipped(collate(list(samples.values()), positions))

    def _give_up_if_bad(self, reasons: Counter[SkipReason], samples: int) -> None:
        """Raises ValueError where nearly all of many samples in turn were bad: a server that is gone, say."""
        if not self.plan.substitutes:
            return
        self._bad += reasons
        self._seen += samples
        if self._seen < MANY:
            return
        if self._bad.total() > MAX_BAD * self._seen:
            raise ValueError(
                f"data.shards: {self._bad.total()} of the last {self._seen} samples could not be used: "
                f"{_listed(self._bad)}"
            )
        self._bad, self._seen = Counter(), 0

    def _substitute(self, batch: PlannedBatch, row: int, skipped: SkippedSampleError) -> Sample:
        """The first usable one among a bad sample's substitutes. What is tried in vain is not counted."""
        reasons = Counter([skipped.reason])
        for raw in self._substitutes(batch, row, skipped):
            try:
                return self._decode(raw, batch)
            except SkippedSampleError as another:
                reasons[another.reason] += 1
        raise ValueError(
            f"data.shards: {reasons.total()} samples were tried in turn and none can be used by "
            f"{self.decoder}: {_listed(reasons)}"
        )

    def _substitutes(
        self, batch: PlannedBatch, row: int, skipped: SkippedSampleError
    ) -> Iterator[RawSample | SkippedSampleError]:
        if skipped.substitute is not None:
            yield skipped.substitute
        candidates = batch.substitutes(row)
        # A source that waits for servers asks for a few together; to another, more than needed is only work.
        together = TOGETHER if isinstance(self.source, SubstitutingSource) else 1
        while some := list(itertools.islice(candidates, together)):
            yield from self.source.samples(some)

    def _decode(self, raw: RawSample | SkippedSampleError, batch: PlannedBatch) -> Sample:
        if isinstance(raw, SkippedSampleError):
            raise raw
        return self.decoder(raw, batch.bucket.size)

    def _flipped(self, batch: Batch) -> Batch:
        if not self.flip or batch.images is None:
            return batch
        heads = SampleGenerator(seed=self.seed, keys=batch.positions, purpose="flip").uniform() < 0.5
        images = torch.where(heads[:, None, None, None], batch.images.flip(-1), batch.images)
        return replace(batch, images=images)


def _listed(reasons: Counter[SkipReason]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
