"""The LightningDataModule: tar shards in, batches out, on every rank and across restarts."""

import signal
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from rfdit.batch import Batch
from rfdit.data.decode import SampleDecoder
from rfdit.data.shards import Shards, resolve_shards
from rfdit.data.stream import TarStream

PREFETCHED_BATCHES = 4  # per worker
SECONDS_TO_SAVE = 120  # that a worker lives on after a SIGTERM


class StreamDataModule(L.LightningDataModule):
    """Streams tar shards for training, endlessly, and for validation, in one pass.

    shards, val_shards: patterns as `expand_shards` takes them, or callables that return the shards.
        Without val_shards there is no validation.
    resolution: side, or (height, width), to which images are resized and centre-cropped.
    batch_size: samples per step on each device.
    num_workers: decoding processes per device; 0 decodes in the training process.
    seed: of the order and the augmentation.
    shuffle_buffer: undecoded samples held by each worker to shuffle beyond the order of the shards.
    caption_key, label_key: where captions and labels are in a sample, as in `SampleDecoder`.
    flip: mirror half of the training images. Captions may say left and right, so by default not.

    Its state is the number of training batches that each rank has consumed; see `TarStream` for
    what a restart continues exactly.
    """

    def __init__(
        self,
        *,
        shards: Shards,
        val_shards: Shards | None = None,
        resolution: int | Sequence[int],
        batch_size: int,
        num_workers: int = 2,
        seed: int,
        shuffle_buffer: int = 1000,
        caption_key: str | None = "txt",
        label_key: str | None = None,
        flip: bool = False,
    ) -> None:
        super().__init__()
        self.shards, self.val_shards = shards, val_shards
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.shuffle_buffer, self.flip = shuffle_buffer, flip
        self.decoder = SampleDecoder(
            resolution=_resolution(resolution), caption_key=caption_key, label_key=label_key
        )
        self.batches = 0
        self._saved: dict[str, int] | None = None
        self._streams: dict[str, TarStream] = {}

    def prepare_data(self) -> None:
        """Makes shards that have yet to be made, on one process per machine."""
        for shards in (self.shards, self.val_shards):
            if callable(shards):
                shards()

    def train_dataloader(self) -> DataLoader[Batch]:
        self._continue_saved()
        shards = resolve_shards(self.shards, setting="data.shards")
        stream = self._stream(shards, workers=self.num_workers, endless=True, train=True)
        self._streams["train"] = stream
        return self._loader(stream, persistent=True)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """One pass in order on a single rank; on several, an endless stream of which all read as much.

        Ranks that run out at different times would wait for each other for ever.
        """
        if self.val_shards is None:
            return []
        several = self._rank_of()[1] > 1
        limit = 0 if self.trainer is None else self.trainer.limit_val_batches
        if several and isinstance(limit, float):
            raise ValueError(
                f"trainer.limit_val_batches={limit:g} is a share, and ranks have uneven shares of "
                "data.val_shards; give a number of batches"
            )
        shards = resolve_shards(self.val_shards, setting="data.val_shards")
        # One worker, started for each validation: it would only idle while training goes on.
        stream = self._stream(shards, workers=min(self.num_workers, 1), endless=several, train=False)
        self._streams["val"] = stream
        return self._loader(stream, persistent=False)

    def skipped(self) -> dict[str, int]:
        """How many samples this rank has left out, by reason; validation's reasons begin with val_."""
        counts: dict[str, int] = {}
        for name, stream in self._streams.items():
            prefix = "" if name == "train" else f"{name}_"
            counts |= {prefix + reason: n for reason, n in stream.skips.total().items()}
        return counts

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        # Here, because it comes before the callbacks of the step: a checkpoint written after the
        # step must count its batch, and not those that workers have read ahead.
        if self.trainer is not None and self.trainer.training:
            self.batches += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches} | self._shape()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = dict(state_dict)

    def _continue_saved(self) -> None:
        """Sets where the stream starts, in this run's batches."""
        if self._saved is None:
            return
        saved, self._saved = self._saved, None
        shape = self._shape()
        if shape == {name: saved[name] for name in shape}:
            self.batches = saved["batches"]
            return
        samples = saved["batches"] * saved["batch_size"] * saved["ranks"]
        # Rounded up: no position is used twice.
        self.batches = -(-samples // (shape["batch_size"] * shape["ranks"]))
        was, now = (
            f"{s['ranks']} ranks x {s['workers']} workers x batch {s['batch_size']}" for s in (saved, shape)
        )
        warnings.warn(
            f"the checkpoint was written with {was} and this run has {now}: the data continues after "
            f"{samples} samples, in another order than it would have",
            stacklevel=2,
        )

    def _shape(self) -> dict[str, int]:
        """What the order of the samples depends on besides the seed."""
        return {
            "batch_size": self.batch_size,
            "ranks": self._rank_of()[1],
            "workers": max(self.num_workers, 1),
        }

    def _rank_of(self) -> tuple[int, int]:
        """(this process's rank, number of ranks)."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _stream(self, shards: list[str], *, workers: int, endless: bool, train: bool) -> TarStream:
        rank, ranks = self._rank_of()
        return TarStream(
            shards=shards,
            decoder=self.decoder,
            batch_size=self.batch_size,
            seed=self.seed,
            endless=endless,
            shuffle_buffer=self.shuffle_buffer,
            rank=rank,
            ranks=ranks,
            workers=workers,
            start_batch=self.batches if train else 0,
            flip=self.flip and train,
        )

    @staticmethod
    def _loader(stream: TarStream, *, persistent: bool) -> DataLoader[Batch]:
        return DataLoader(
            stream,
            batch_size=None,  # the stream's elements are batches
            num_workers=stream.workers,
            persistent_workers=persistent and stream.workers > 0,
            prefetch_factor=PREFETCHED_BATCHES if stream.workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_outlive_signals,
        )


def _outlive_signals(worker: int) -> None:
    """Lets the training process end a run that Ctrl-C or SIGTERM stopped.

    Both usually reach a whole process group. A worker that died of them would take the training
    process with it before the checkpoint is written; so it goes on, and ends itself if it is still
    there after a while.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_TO_SAVE))


def _resolution(resolution: int | Sequence[int]) -> int | tuple[int, int]:
    if isinstance(resolution, int):
        return resolution
    if len(resolution) != 2:
        raise ValueError(f"data.resolution={list(resolution)} is no side and no [height, width]")
    return resolution[0], resolution[1]
