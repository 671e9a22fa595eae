"""The LightningDataModule: a shard source, split per rank and worker."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from rfdit.batch import Batch
from rfdit.data.decode import Decoder
from rfdit.data.skips import SkipCounts
from rfdit.data.sources import ShardSource, TarShards
from rfdit.data.stream import TarStream


class StreamData(L.LightningDataModule):
    """Endless training batches and one-pass validation batches from the shards of a source.

    batch_size: per device. num_workers: decoding processes per device; 0 decodes in the main one.
    resolution, caption_key, label_key: see `Decoder`. shuffle_buffer, flip: see `TarStream`.
    """

    def __init__(
        self,
        *,
        source: ShardSource,
        resolution: int | Sequence[int],
        batch_size: int,
        seed: int,
        num_workers: int = 2,
        shuffle_buffer: int = 1000,
        caption_key: str | None = "txt",
        label_key: str | None = None,
        flip: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size} must be at least 1")
        self.source, self.batch_size, self.num_workers = source, batch_size, num_workers
        self.seed, self.shuffle_buffer, self.flip = seed, shuffle_buffer, flip
        self.decoder = Decoder(resolution=resolution, caption_key=caption_key, label_key=label_key)
        self.skips = SkipCounts(workers=num_workers)
        self.batches = 0  # of the training stream, given to this rank

    def prepare_data(self) -> None:
        """Once per node, before any rank reads: finds or makes the shards."""
        self.source.train_shards()

    def skipped(self) -> dict[str, int]:
        """How many training samples this rank could not use, by reason."""
        return self.skips.totals()

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, ranks = self._place()
        stream = TarStream(
            shards=self.source.train_shards(),
            decoder=self.decoder,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            ranks=ranks,
            shuffle_buffer=self.shuffle_buffer,
            start_batch=self.batches,
            flip=self.flip,
            skips=self.skips,
        )
        return self._loader(stream)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        shards = self.source.val_shards()
        if not shards:
            return []
        rank, ranks = self._place()
        stream = TarStream(
            shards=shards,
            decoder=self.decoder,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            ranks=ranks,
            shuffle_buffer=0,
            endless=False,
            skips=SkipCounts(workers=self.num_workers),
        )
        return self._loader(stream)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(self, stream: TarStream) -> DataLoader[Batch]:
        return DataLoader(
            stream,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_one_thread,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        # Called when a batch is used, not when it is read ahead, and before checkpoints are written.
        if self.trainer is not None and self.trainer.training:
            self.batches += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.batches * self.batch_size * self._place()[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Counted in samples of all ranks, so that a run may go on with others of them.
        self.batches = state_dict["samples"] // (self.batch_size * self._place()[1])


def laion(
    *, shards: str | Sequence[str], val_shards: str | Sequence[str] | None = None, **settings: Any
) -> StreamData:
    """StreamData of shards that exist, with their patterns among its settings: `data=laion`."""
    return StreamData(source=TarShards(shards=shards, val_shards=val_shards), **settings)


def _one_thread(worker: int) -> None:
    """Workers share the cores; each decodes on one."""
    torch.set_num_threads(1)
