"""The LightningDataModule: shards in, batches out, on every rank and across restarts."""

import ctypes
import hashlib
import json
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from rfdit.batch import Batch
from rfdit.data.buckets import AspectBuckets
from rfdit.data.filters import Filters
from rfdit.data.latents import LatentDecoder
from rfdit.data.plan import Bucket, EndlessPlan, FinitePlan, Plan, Progress, bucketed, rebatched
from rfdit.data.sample import Decoder
from rfdit.data.shards import Shards, resolve_shards
from rfdit.data.source import Reader, Source
from rfdit.data.stream import Stream
from rfdit.data.tar_source import TarSource
from rfdit.data.transfer import Transfer

PREFETCHED_BATCHES = 4  # per worker
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal for a process whose parent has died
SECONDS_TO_SAVE = 120  # that a worker lives on after a SIGTERM


class StreamDataModule(L.LightningDataModule):
    """Streams shards for training, endlessly, and for validation, in one pass.

    shards, val_shards: patterns as `expand_shards` takes them, or callables that return the shards.
        Without val_shards there is no validation.
    reader: opens the shards. decoder: makes samples of what it reads.
    filters: which samples are wanted, of both.
    buckets: sizes among which training images choose by their aspect ratio; None for one size.
    resolution: side, or (height, width), to which images are resized and centre-cropped.
    batch_size: samples per step on each device.
    num_workers: decoding processes per device; 0 decodes in the training process.
    seed: of the order and the augmentation.
    shuffle_shards: shards whose samples are mixed with each other; the shards are shuffled as well.
    flip: mirror half of the training images. Captions may say left and right, so by default not.

    Its state is how far the stream was consumed, one number without buckets, equal on all ranks.
    A restart continues exactly there, with the same sequence for any number of ranks and workers if
    the global batch (ranks x batch_size) has the same size; with another, no sample is repeated or lost
    within the epoch. With other shards, filters, buckets, seed or shuffle_shards it warns and goes on in
    another order.
    """

    def __init__(
        self,
        *,
        shards: Shards,
        val_shards: Shards | None = None,
        reader: Reader,
        decoder: Decoder,
        filters: Filters,
        buckets: AspectBuckets | None = None,
        resolution: int | Sequence[int],
        batch_size: int,
        num_workers: int = 2,
        seed: int,
        shuffle_shards: int = 32,
        flip: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise ValueError(f"data.{name}={value} must be at least {least}")
        if shuffle_shards < 1:
            raise ValueError(f"data.shuffle_shards={shuffle_shards} must be at least 1")
        if buckets is not None and isinstance(decoder, LatentDecoder):
            raise ValueError(
                "buckets=aspect does not fit cached latents, which are all of one data.resolution; use buckets=none, "
                "or images (data=laion)"
            )
        self.shards, self.val_shards = shards, val_shards
        self.reader, self.decoder, self.filters, self.buckets = reader, decoder, filters, buckets
        self.size = _size(resolution)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.shuffle_shards, self.flip = shuffle_shards, flip
        self.batches = 0  # consumed in this run
        self._start: Progress | None = None
        self._about: dict[str, Any] = {}
        self._saved: dict[str, Any] | None = None
        self._sources: dict[str, Source] = {}
        self._digests: dict[str, str] = {}  # of what was opened
        self._streams: dict[str, Stream] = {}
        self._transfer = Transfer()

    def prepare_data(self) -> None:
        """Makes what has yet to be made (shards, indices) on one process per machine."""
        self._open(self.shards, "shards", buckets=self.buckets is not None)
        if self.val_shards is not None:
            self._open(self.val_shards, "val_shards", buckets=False)

    def train_dataloader(self) -> DataLoader[Batch]:
        source = self._open(self.shards, "shards", buckets=self.buckets is not None)
        buckets = self._bucketed(source)
        self._start, self.batches = self._progress(buckets), 0
        _require_equal_on_ranks(self._about)
        if isinstance(source, TarSource) and self._rank_of()[0] == 0:
            source.warn_of_small_spool(self.shuffle_shards * len(buckets))
        plan = EndlessPlan(
            buckets,
            seed=self.seed,
            shuffle_shards=self.shuffle_shards,
            batch_size=self.batch_size,
            ranks=self._rank_of()[1],
            progress=self._start,
        )
        return self._loader("train", source, plan, workers=self.num_workers, flip=self.flip)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """One pass in order; every rank has equally many batches."""
        if self.val_shards is None:
            return []
        source = self._open(self.val_shards, "val_shards", buckets=False)
        whole = Bucket(self.size, source.shard_sizes)
        _require_equal_on_ranks({"samples": len(whole), "digest": self._digests["val"]})
        plan = FinitePlan(whole, batch_size=self.batch_size, ranks=self._rank_of()[1])
        # One worker, started for each validation: it would only idle while training goes on.
        return self._loader("val", source, plan, workers=min(self.num_workers, 1), flip=False)

    def skipped(self) -> dict[str, int]:
        """How many samples were left out, by reason; validation's reasons begin with val_.

        Those that opening the shards left out are the same on every rank; what cannot be decoded is
        counted by the rank that met it, each time.
        """
        counts: dict[str, int] = {}
        for name, source in self._sources.items():
            prefix = "" if name == "train" else f"{name}_"
            met = self._streams[name].skips.total() if name in self._streams else {}
            for reason, n in [*source.skipped().items(), *met.items()]:
                counts[prefix + reason] = counts.get(prefix + reason, 0) + n
        return counts

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return self._transfer(batch, device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        # Here, because it comes before the callbacks of the step: a checkpoint written after the
        # step must count its batch, and not those that workers have read ahead.
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
        return progress | {"about": self._about}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = dict(state_dict)

    def _open(self, shards: Shards, setting: str, *, buckets: bool) -> Source:
        """The source, opened at the first call; raises ValueError if it has nothing usable."""
        name = "val" if setting == "val_shards" else "train"
        if name in self._sources:
            return self._sources[name]
        found = resolve_shards(shards, setting=f"data.{setting}", suffixes=self.reader.suffixes)
        self.decoder.check(found, self.size)
        source = self.reader(found, filters=self.filters, image_sizes=buckets)
        if not sum(source.shard_sizes):
            listed = ", ".join(f"{n} {reason}" for reason, n in sorted(source.skipped().items()))
            raise ValueError(
                f"data.{setting}: no sample of {len(found)} shards, the first of them {found[0]}, can be "
                f"used: {listed or 'they are empty'}"
            )
        about = [source.shard_sizes, [Path(shard).name for shard in found]]
        self._digests[name] = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        self._sources[name] = source
        return source

    def _bucketed(self, source: Source) -> list[Bucket]:
        if self.buckets is None:
            return [Bucket(self.size, source.shard_sizes)]
        assigned = self.buckets.assign(source.image_sizes())
        buckets = bucketed(self.buckets.sizes, assigned, source.shard_sizes)
        smallest = min(buckets, key=len)
        if len(buckets) == 1 or len(smallest) < self.batch_size:
            warnings.warn(
                "data.buckets has no effect: all images get the same size"
                if len(buckets) == 1
                else f"data.buckets: the bucket {smallest.size} has {len(smallest)} images, less than a batch; its "
                "batches repeat them. A larger data.buckets.step or a smaller max_aspect makes fewer buckets",
                stacklevel=2,
            )
        return buckets

    def _progress(self, buckets: Sequence[Bucket]) -> Progress:
        """Where training starts: at the beginning, or where the checkpoint stopped."""
        batch = self.batch_size * self._rank_of()[1]
        order = [self._digests["train"], self.shuffle_shards, [[b.size, len(b)] for b in buckets]]
        digest = hashlib.sha256(json.dumps(order).encode()).hexdigest()[:16]
        self._about = {"samples": sum(map(len, buckets)), "seed": self.seed, "digest": digest}
        saved, self._saved = self._saved, None
        if not saved:
            return Progress(origin=(0,) * len(buckets), batch=batch)
        if "origin" not in saved:
            raise ValueError(
                "ckpt: its data state is of an older rfdit, whose order this one does not know; start a new run"
            )
        progress = Progress(origin=tuple(saved["origin"]), batch=saved["batch"], batches=saved["batches"])
        if saved["about"] == self._about:
            return rebatched(buckets, progress, batch)
        consumed = sum(progress.origin) + progress.batches * progress.batch
        theirs = saved["about"]
        warnings.warn(
            f"the checkpoint's stream was another: {theirs['samples']} samples, seed {theirs['seed']}, and here "
            f"{self._about['samples']}, seed {self.seed}, or other shards, filters, buckets or shuffle_shards. "
            f"It goes on from position {consumed} in the new order; what was seen in this epoch may come again",
            stacklevel=2,
        )
        # In equal parts of an epoch; the positions, which noise depends on, do not repeat.
        share = [consumed * len(bucket) // self._about["samples"] for bucket in buckets]
        share[0] += consumed - sum(share)
        return Progress(origin=tuple(share), batch=batch)

    def _rank_of(self) -> tuple[int, int]:
        """(this process's rank, number of ranks)."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _loader(
        self, name: str, source: Source, plan: Plan, *, workers: int, flip: bool
    ) -> DataLoader[Batch]:
        stream = Stream(
            source=source,
            plan=plan,
            decoder=self.decoder,
            seed=self.seed,
            rank=self._rank_of()[0],
            workers=workers,
            flip=flip,
        )
        self._streams[name] = stream
        return DataLoader(
            stream,
            batch_size=None,  # the stream's elements are batches
            num_workers=workers,
            persistent_workers=name == "train" and workers > 0,
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_outlive_signals,
        )


def _require_equal_on_ranks(about: dict[str, Any]) -> None:
    """Raises ValueError unless all ranks opened the same data: one that misses a shard would read another order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    seen: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(seen, about)
    for rank, other in enumerate(seen):
        if other != seen[0]:
            raise ValueError(
                f"data: rank {rank} finds {other['samples']} samples and rank 0 {seen[0]['samples']}, "
                "or in other shards; all must see the same files"
            )


def _outlive_signals(worker: int) -> None:
    """Lets the training process end a run that Ctrl-C or SIGTERM stopped.

    Both usually reach a whole process group. A worker that died of them would take the training
    process with it before the checkpoint is written; so it goes on, and ends itself if it is still
    there after a while. If the training process is killed outright, so is the worker.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_TO_SAVE))


def _size(resolution: int | Sequence[int]) -> tuple[int, int]:
    """(height, width)."""
    sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(sides) != 2 or min(sides) < 1:
        given = resolution if isinstance(resolution, int) else list(resolution)
        raise ValueError(f"data.resolution={given} is no side and no [height, width] in pixels")
    return sides[0], sides[1]
