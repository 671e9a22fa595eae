"""From a plan to batches: what a DataLoader worker does."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.data import IterableDataset, get_worker_info

from rfdit.batch import Batch
from rfdit.data.plan import Plan, PlannedBatch
from rfdit.data.sample import Decoder, RawSample, Sample, collate
from rfdit.data.skips import SkipCounts, SkippedSampleError, SkipReason
from rfdit.data.source import Source
from rfdit.randomness import SampleGenerator


class Stream(IterableDataset[Batch]):
    """Reads, decodes and batches the samples of a plan; a DataLoader adds workers.

    seed: with a sample's position it decides whether its image is mirrored.
    rank: whose batches of the plan these are.
    workers: of the DataLoader that reads this stream; 0 is the process itself. Worker w of W makes the
        batches w, w + W, ..., which the DataLoader takes in turn: any W gives the same sequence.
    flip: mirror each image with probability 1/2.

    Samples that cannot be used are counted in `skips`, for the current iteration. An endless plan
    replaces each by a neighbour of it, so that the position of every other sample stays what it is;
    a finite one leaves it out. Only if other ranks have a batch where all samples of this one are bad,
    a substitute stands in for them, so that nobody waits for ever.

    Raises ValueError where no usable sample is found for a place.
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

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        assert workers == max(self.workers, 1), "workers must be the DataLoader's num_workers"
        self.skips.reset(worker=worker)
        # The source runs ahead of the batches, as far as it needs to.
        batches, ahead = itertools.tee(self.plan.batches(self.rank, worker, workers))
        found = self.source.samples(number for batch in ahead for number in batch.numbers)
        for batch in batches:
            read = self._read(batch, list(itertools.islice(found, len(batch.indices))), worker)
            if read is not None:
                yield read

    def _read(
        self, batch: PlannedBatch, found: list[RawSample | SkippedSampleError], worker: int
    ) -> Batch | None:
        samples: dict[int, Sample] = {}
        for row, raw in enumerate(found):
            try:
                samples[row] = self._decode(raw, batch)
            except SkippedSampleError as skipped:
                self.skips.add(skipped.reason, worker=worker)
                if self.plan.substitutes:
                    samples[row] = self._substitute(batch, row)
        if not samples and not self.plan.in_step:
            return None
        if not samples:
            samples[0] = self._substitute(batch, 0)
        positions = torch.tensor([batch.positions[row] for row in samples])
        return self._flipped(collate(list(samples.values()), positions))

    def _substitute(self, batch: PlannedBatch, row: int) -> Sample:
        """The first usable one among a bad sample's substitutes. What is tried in vain is not counted here."""
        reasons: dict[SkipReason, int] = {}
        for number in itertools.chain([batch.numbers[row]], batch.substitutes(row)):
            try:
                return self._decode(next(iter(self.source.samples([number]))), batch)
            except SkippedSampleError as skipped:
                reasons[skipped.reason] = reasons.get(skipped.reason, 0) + 1
        listed = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        raise ValueError(
            f"data.shards: {sum(reasons.values())} samples were tried in turn and none can be used by "
            f"{self.decoder}: {listed}"
        )

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
