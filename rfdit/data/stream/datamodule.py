"""The LightningDataModule: batches from shards, on every rank and across restarts."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from rfdit.batch import Batch
from rfdit.counted import counted
from rfdit.data.filters import Filters
from rfdit.data.first import FirstSamples
from rfdit.data.joined import joined
from rfdit.data.sample import CacheDecoder, Decoder, PairDecoder
from rfdit.data.shards import Shards, resolve_shards
from rfdit.data.skips import listed
from rfdit.data.source import Reader, RemarksOnCaptions, ShardFilesSource, Source
from rfdit.data.stream.buckets import AspectBuckets
from rfdit.data.stream.dataset import Stream
from rfdit.data.stream.description import DataDescription
from rfdit.data.stream.positions import (
    Bucket,
    EndlessPlan,
    FinitePlan,
    Plan,
    StreamState,
    bucketed,
    rebatched,
)
from rfdit.data.stream.sets import SetRate, Weight, rates_of, sets_of
from rfdit.data.stream.transfer import Transfer
from rfdit.images import parse_size
from rfdit.limits import Count, Index, Seed, Size
from rfdit.processes.rank import Process
from rfdit.processes.signals import outlive_signals
from rfdit.storage.checksum import json_digest

PREFETCHED_BATCHES = 4  # per worker


class StreamDataModule(L.LightningDataModule):
    """Streams shards for training, endlessly, and for validation, in one pass.

    shards, val_shards: patterns as `expand_shards` takes them, or callables that return the shards.
        Without val_shards there is no validation.
    weights: share of the training that each item of the list `shards` has, whatever its size. repeats: times that
        the samples of each item come in an epoch. Without both, all are one set, whose samples come equally often.
    limit: number of samples of training, the first ones of all; None is all.
    reader: opens the shards. decoder: decodes the raw samples that it reads.
    filters: rules that select samples, in training and validation.
    buckets: sizes of training images, by their aspect ratio; None is one size.
    resolution: side, or (height, width), to which images are resized and centre-cropped.
    batch_size: samples per step on each device.
    num_workers: decoding processes per device; 0 decodes in the training process.
    seed: seed of the order and the augmentation.
    shuffle_shards: shards whose samples are mixed with each other; the shards are shuffled as well.
    flip: mirror half of the training images; off by default, since captions may say left and right.

    Its state is the progress in the stream, one number without buckets, equal on all ranks. A restart
    continues exactly there. If the global batch (ranks x batch_size) has the same size, the sequence is the
    same for any number of ranks and workers; with another size, no sample is repeated or lost within the
    epoch. With other shards, filters, buckets, seed or shuffle_shards it warns and continues in another
    order.
    """

    def __init__(
        self,
        *,
        shards: Shards,
        val_shards: Shards | None = None,
        weights: Sequence[Weight] | None = None,
        repeats: Sequence[Weight] | None = None,
        limit: Count | None = None,
        reader: Reader,
        decoder: Decoder,
        filters: Filters,
        buckets: AspectBuckets | None = None,
        resolution: Size,
        batch_size: Count,
        num_workers: Index = 2,
        seed: Seed,
        shuffle_shards: Count = 32,
        flip: bool = False,
    ) -> None:
        super().__init__()
        limits = {
            "batch_size": (batch_size, 1),
            "num_workers": (num_workers, 0),
            "shuffle_shards": (shuffle_shards, 1),
        }
        for name, (value, least) in limits.items():
            if value < least:
                raise ValueError(f"data.{name}={value} must be at least {least}")
        if buckets is not None and isinstance(decoder, PairDecoder):
            raise ValueError(
                "data.buckets are of single images, and data=preferences has pairs, which have one size; use "
                "buckets=none"
            )
        self.shards, self.val_shards = shards, val_shards
        self.sets, self.weights, self.repeats = sets_of(shards, weights, repeats), weights, repeats
        self.limit = limit
        self.reader, self.decoder, self.filters, self.buckets = reader, decoder, filters, buckets
        self.size = parse_size(resolution, setting="data.resolution")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.shuffle_shards, self.flip = shuffle_shards, flip
        self.batches = 0  # consumed in this run
        self._start: StreamState | None = None
        self._identity: dict[str, Any] = {}
        self._saved: dict[str, Any] | None = None
        self._sources: dict[str, Source] = {}
        self._rates: list[SetRate] = []
        self._digests: dict[str, str] = {}  # of the opened shards
        self._transfer = Transfer()

    def prepare_data(self) -> None:
        """Write the shards and indexes that are missing, in one process per machine."""
        self._open("train", self.shards)
        if self.val_shards is not None:
            self._open("val", self.val_shards)

    def train_dataloader(self) -> DataLoader[Batch]:
        source = self._open("train", self.shards)
        buckets = self._bucketed(source)
        self._start, self.batches = self._progress(buckets), 0
        _require_equal_on_ranks(self._identity)
        if isinstance(source, ShardFilesSource) and self._process().rank == 0:
            source.check_room(self.shuffle_shards * len(buckets))
        plan = EndlessPlan(
            buckets,
            seed=self.seed,
            shuffle_shards=self.shuffle_shards,
            batch_size=self.batch_size,
            ranks=self._process().world_size,
            progress=self._start,
        )
        return self._loader(source, plan, workers=self.num_workers, flip=self.flip, persistent=True)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """One pass in order; every rank has the same number of batches."""
        if self.val_shards is None:
            return []
        source = self._open("val", self.val_shards)
        whole = Bucket(self.size, source.shard_sizes)
        _require_equal_on_ranks({"samples": len(whole), "digest": self._digests["val"]})
        plan = FinitePlan(whole, batch_size=self.batch_size, ranks=self._process().world_size)
        # One worker, started for each validation: it would only idle during training.
        return self._loader(source, plan, workers=min(self.num_workers, 1), flip=False, persistent=False)

    def skipped(self) -> dict[str, int]:
        """Counts, by reason, of the samples that were left out when the shards were opened; equal on all ranks.

        Validation's reasons begin with val_. A sample that turns out bad when it is read is counted in its batch.
        """
        return {
            ("" if name == "train" else f"{name}_") + reason: n
            for name, source in self._sources.items()
            for reason, n in source.skipped().items()
        }

    def describe(self) -> DataDescription:
        """The data in numbers; opens it, if that has not been done."""
        source = self._open("train", self.shards)
        val = None if self.val_shards is None else self._open("val", self.val_shards)
        mass = Bucket(self.size, source.shard_sizes, rates=self._rates).mass
        return DataDescription(
            samples=sum(source.shard_sizes),
            epoch=None if self.weights is not None else round(mass),
            val_samples=None if val is None else sum(val.shard_sizes),
            left_out=self.skipped(),
            size=self.size,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            captions=source.caption_remark if isinstance(source, RemarksOnCaptions) else None,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return self._transfer(batch, device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        # Here, before the callbacks of the step: a checkpoint written after the step must count its
        # batch, and not the batches that workers have prefetched.
        if self.trainer is not None and self.trainer.training:
            self.batches += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        start = self._start
        if start is None:  # saved before training began
            return self._saved or {}
        progress = {
            "origin": list(start.origin),
            "batch": start.batch,
            "batches": start.batches + self.batches,
        }
        return progress | {"about": self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = dict(state_dict)

    def _open(self, name: str, shards: Shards) -> Source:
        """The source of `train` or `val`, opened at the first call; raises ValueError without a usable sample."""
        if name in self._sources:
            return self._sources[name]
        setting = "data.shards" if name == "train" else "data.val_shards"
        sets = self.sets if name == "train" else None
        found_sets = [
            resolve_shards(each, setting=setting, suffixes=self.reader.suffixes) for each in sets or [shards]
        ]
        found = [shard for each in found_sets for shard in each]
        buckets = self.buckets if name == "train" else None
        if isinstance(self.decoder, CacheDecoder):
            self.decoder.check(found, self.size, None if buckets is None else buckets.sizes)
        needs_sizes = buckets is not None
        sources = [self.reader(each, filters=self.filters, image_sizes=needs_sizes) for each in found_sets]
        source = joined(sources)
        if self.limit is not None and name == "train":
            source = FirstSamples(source, self.limit)
        if not sum(source.shard_sizes):
            raise ValueError(
                f"{setting}: no sample of {counted(len(found), 'shard')}, the first of them {found[0]}, can be "
                f"used: {listed(source.skipped()) or 'they are empty'}"
            )
        about: list[Any] = [source.shard_sizes, [Path(shard).name for shard in found]]
        if sets is not None:
            self._rates = rates_of(sources, self.weights, self.repeats)
            about.append([[each.shards, str(each.rate)] for each in self._rates])
        self._digests[name] = json_digest(about, digits=16)
        self._sources[name] = source
        return source

    def _bucketed(self, source: Source) -> list[Bucket]:
        if self.buckets is None:
            return [Bucket(self.size, source.shard_sizes, rates=self._rates)]
        assigned = self.buckets.assign(source.image_sizes())
        buckets = bucketed(self.buckets.sizes, assigned, source.shard_sizes, self._rates)
        smallest = min(buckets, key=len)
        if len(buckets) == 1 or len(smallest) < self.batch_size:
            warnings.warn(
                "data.buckets has no effect: all images get the same size"
                if len(buckets) == 1
                else f"data.buckets: the bucket {smallest.size} has {counted(len(smallest), 'image')}, less "
                "than a batch; its batches repeat them. A larger data.buckets.step or a smaller "
                "max_aspect makes fewer buckets",
                stacklevel=2,
            )
        return buckets

    def _progress(self, buckets: Sequence[Bucket]) -> StreamState:
        """The start of training: the beginning, or the progress of the checkpoint."""
        batch = self.batch_size * self._process().world_size
        order = [self._digests["train"], self.shuffle_shards, [[b.size, len(b)] for b in buckets]]
        digest = json_digest(order, digits=16)
        self._identity = {"samples": sum(map(len, buckets)), "seed": self.seed, "digest": digest}
        saved, self._saved = self._saved, None
        if not saved:
            return StreamState(origin=(0,) * len(buckets), batch=batch)
        progress = StreamState(origin=tuple(saved["origin"]), batch=saved["batch"], batches=saved["batches"])
        if saved["about"] == self._identity:
            return rebatched(buckets, progress, batch)
        consumed = sum(progress.origin) + progress.batches * progress.batch
        theirs = saved["about"]
        warnings.warn(
            f"the checkpoint belongs to another stream: {theirs['samples']} samples, seed {theirs['seed']}, and here "
            f"{self._identity['samples']}, seed {self.seed}, or other shards, weights, filters, buckets or "
            f"shuffle_shards. It continues from position {consumed} in the new order; samples of this epoch may come "
            "again",
            stacklevel=2,
        )
        # The same part of each bucket's epoch; the positions, which noise depends on, do not repeat.
        origin = [consumed * len(bucket) // self._identity["samples"] for bucket in buckets]
        origin[0] += consumed - sum(origin)
        return StreamState(origin=tuple(origin), batch=batch)

    def _process(self) -> Process:
        if self.trainer is None:
            return Process.of_group()
        return Process(self.trainer.global_rank, self.trainer.world_size, self.trainer.local_rank)

    def _loader(
        self, source: Source, plan: Plan, *, workers: int, flip: bool, persistent: bool
    ) -> DataLoader[Batch]:
        stream = Stream(
            source=source,
            plan=plan,
            decoder=self.decoder,
            seed=self.seed,
            rank=self._process().rank,
            flip=flip,
        )
        return DataLoader(
            stream,
            batch_size=None,  # the stream's elements are batches
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_signals,
        )


def _require_equal_on_ranks(about: dict[str, Any]) -> None:
    """Raises ValueError unless all ranks opened the same data: a missing shard would change a rank's order."""
    ranks = Process.of_group().world_size
    if ranks == 1:
        return
    all_ranks: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(all_ranks, about)
    for rank, other in enumerate(all_ranks):
        if other != all_ranks[0]:
            raise ValueError(
                f"data.shards: rank {rank} finds {other['samples']} samples and rank 0 {all_ranks[0]['samples']}, "
                "or the same number in other shards; all ranks must see the same files"
            )
