"""The dataset of a DataLoader worker: reads, decodes and batches the samples of a plan."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from rfdit.batch import Batch
from rfdit.counted import counted
from rfdit.data.sample import Decoder, RawSample, Sample, collate, using
from rfdit.data.skips import SkippedSampleError, SkipReason, listed
from rfdit.data.source import Source, SubstitutingSource
from rfdit.data.stream.positions import Plan, PlannedBatch
from rfdit.randomness import SampleGenerator, randrange

SUBSTITUTES = 4  # requested at the same time from a source that waits for a network
WINDOW, MAX_BAD = 1000, 0.95  # the last samples, and the fraction of bad ones among them that ends a run


class Stream(IterableDataset[Batch]):
    """Reads, decodes and batches the samples of a plan; a DataLoader adds workers.

    seed: key, with a sample's position, of the decision to mirror its image, and of which of its captions is taken.
    rank: the rank whose batches of the plan are read.
    flip: mirror each image with probability 1/2.

    Worker w of a DataLoader's W makes the batches w, w + W, ..., which the DataLoader takes in turn: any W gives
    the same sequence.

    Samples that cannot be used are counted in the `skipped` of their batch, so that whoever counts the batches
    that were used counts no sample that was only read ahead. An endless plan replaces each by another of its
    shard, so that all other samples keep their positions; a finite plan leaves it out. Only where all samples
    of a batch are bad and other ranks have a batch there, one substitute takes their place, so that no rank
    waits for ever. Where no other rank waits, there is no such batch, and the next one, or the last, has its
    counts.

    Raises ValueError if no sample or no substitute can be used, or `MAX_BAD` of the last `WINDOW` samples are
    bad.
    """

    def __init__(
        self,
        *,
        source: Source,
        plan: Plan,
        decoder: Decoder,
        seed: int,
        rank: int = 0,
        flip: bool = False,
    ) -> None:
        self.source, self.plan, self.decoder, self.seed = source, plan, decoder, seed
        self.rank, self.flip = rank, flip
        self._bad: Counter[SkipReason] = Counter()  # among the last `_read_count` samples
        self._read_count = 0
        self._first: SkippedSampleError | None = None  # of this pass, as an example in errors

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        self._bad, self._read_count, self._first = Counter(), 0, None
        # The source runs ahead of the batches, as far as it needs to.
        batches, ahead = itertools.tee(self.plan.batches(self.rank, worker, workers))
        found = self._found(ahead)
        held: Batch | None = None
        skipped: Counter[str] = Counter()
        for batch in batches:
            read = self._read(batch, list(itertools.islice(found, len(batch.indices))), skipped)
            if read is None:
                continue
            read, skipped = replace(read, skipped=dict(skipped)), Counter()
            if self.plan.in_step:
                yield read
                continue
            if held is not None:
                yield held
            held = read
        if held is not None:
            yield replace(held, skipped=dict(skipped + Counter(held.skipped)))
        elif skipped and workers == 1:
            raise ValueError(
                f"data: none of {counted(skipped.total(), 'sample')} can be used: {listed(skipped)}; "
                f"the first: {self._first}"
            )

    def _found(self, batches: Iterator[PlannedBatch]) -> Iterator[RawSample | SkippedSampleError]:
        if self.plan.substitutes and isinstance(self.source, SubstitutingSource):
            return self.source.samples_or_substitutes(
                (number, batch.substitutes(row))
                for batch in batches
                for row, number in enumerate(batch.numbers)
            )
        return self.source.samples(number for batch in batches for number in batch.numbers)

    def _read(
        self, batch: PlannedBatch, found: list[RawSample | SkippedSampleError], counts: Counter[str]
    ) -> Batch | None:
        """The batch, without `skipped`; None if it has no sample. The skipped samples are added to `counts`."""
        samples: dict[int, Sample] = {}
        reasons: Counter[SkipReason] = Counter()
        first: SkippedSampleError | None = None
        for row, raw in enumerate(found):
            try:
                samples[row] = self._decode(raw, batch)
            except SkippedSampleError as skipped:
                reasons[skipped.reason] += 1
                self._first, first = self._first or skipped, first or skipped
                if self.plan.substitutes:
                    samples[row] = self._substitute(batch, row, skipped)
        counts.update({str(reason): n for reason, n in reasons.items()})
        self._check_bad(reasons, len(found))
        if not samples and not self.plan.in_step:
            return None
        if not samples and first is not None:
            samples[0] = self._substitute(batch, 0, first)
        positions = torch.tensor([batch.positions[row] for row in samples])
        chosen = [self._with_caption(sample, batch.positions[row]) for row, sample in samples.items()]
        return self._flipped(collate(chosen, positions))

    def _check_bad(self, reasons: Counter[SkipReason], samples: int) -> None:
        """Raises ValueError if nearly all of the last samples were bad, for example because a server is gone."""
        if not self.plan.substitutes:
            return
        self._bad += reasons
        self._read_count += samples
        if self._read_count < WINDOW:
            return
        if self._bad.total() > MAX_BAD * self._read_count:
            raise ValueError(
                f"data.shards: {self._bad.total()} of the last {self._read_count} samples could not be used: "
                f"{listed(self._bad)}; the first: {self._first}"
            )
        self._bad, self._read_count = Counter(), 0

    def _substitute(self, batch: PlannedBatch, row: int, skipped: SkippedSampleError) -> Sample:
        """The first usable substitute of a bad sample. Bad substitutes are not counted."""
        reasons = Counter([skipped.reason])
        for raw in self._substitutes(batch, row, skipped):
            try:
                return self._decode(raw, batch)
            except SkippedSampleError as another:
                reasons[another.reason] += 1
        raise ValueError(
            f"data.shards: {reasons.total()} samples were tried in turn and none can be used by "
            f"{self.decoder}: {listed(reasons)}; the first: {skipped}"
        )

    def _substitutes(
        self, batch: PlannedBatch, row: int, skipped: SkippedSampleError
    ) -> Iterator[RawSample | SkippedSampleError]:
        if skipped.substitute is not None:
            yield skipped.substitute
        candidates = batch.substitutes(row)
        # A source that waits for servers requests a few at the same time; for others that is wasted work.
        count = SUBSTITUTES if isinstance(self.source, SubstitutingSource) else 1
        while chosen := list(itertools.islice(candidates, count)):
            yield from self.source.samples(chosen)

    def _decode(self, raw: RawSample | SkippedSampleError, batch: PlannedBatch) -> Sample:
        with using(raw) as sample:
            return self.decoder(sample, batch.bucket.size)

    def _with_caption(self, sample: Sample, position: int) -> Sample:
        """The sample with one of its captions, drawn by its position."""
        if len(sample.captions) < 2:
            return sample
        drawn = randrange(len(sample.captions), seed=self.seed, purpose=f"caption/{position}")
        return replace(sample, caption=sample.captions[drawn])

    def _flipped(self, batch: Batch) -> Batch:
        if not self.flip or batch.images is None:
            return batch
        heads = SampleGenerator(seed=self.seed, keys=batch.positions, purpose="flip").uniform() < 0.5

        def flipped(images: UInt8[Tensor, "b 3 H W"]) -> UInt8[Tensor, "b 3 H W"]:
            return torch.where(heads[:, None, None, None], images.flip(-1), images)

        rejected = None if batch.rejected is None else flipped(batch.rejected)
        return replace(batch, images=flipped(batch.images), rejected=rejected)
