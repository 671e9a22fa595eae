"""Logs the number of samples that could not be read."""

from collections import Counter
from typing import Any

import lightning as L
import torch

from rfdit.batch import Batch
from rfdit.callbacks.capabilities import CountsSkips, logged_step
from rfdit.data.skips import listed
from rfdit.limits import Count
from rfdit.processes.rank import Process


class SkippedSamples(L.Callback):
    """Logs `data/skipped_<reason>` for every reason for which samples were left out, on all ranks together.

    Counted are the samples that were left out when the data was opened, and those of the batches that were
    trained on since this start, each time that they were due; of validation, those of the latest pass, as
    `data/skipped_val_<reason>`. What workers have read ahead does not count.
    """

    def __init__(self, *, every_n_steps: Count) -> None:
        self.every_n_steps = every_n_steps
        self._train: Counter[str] = Counter()
        self._val: Counter[str] = Counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._train.update(batch.skipped)
        if pl_module.stepped and logged_step(trainer, self.every_n_steps):
            self._log(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._val.clear()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        self._val.update({f"val_{reason}": n for reason, n in batch.skipped.items()})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = self._log(trainer)
        if counts and trainer.is_global_zero:
            print(f"skipped samples: {listed(counts)}")

    def _log(self, trainer: L.Trainer) -> Counter[str]:
        """Log the counts of all ranks, which call this together, and return them."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        counts = _on_all_ranks(self._train + self._val)
        counts.update(data.skipped() if isinstance(data, CountsSkips) else {})
        counts = +counts
        if counts:
            for logger in trainer.loggers:
                metrics = {f"data/skipped_{reason}": float(n) for reason, n in counts.items()}
                logger.log_metrics(metrics, step=trainer.global_step - 1)
        return counts


def _on_all_ranks(counts: Counter[str]) -> Counter[str]:
    """The sum of the counts of all ranks."""
    ranks = Process.of_group().world_size
    if ranks == 1:
        return counts
    every: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(every, dict(counts))
    return sum(map(Counter, every), Counter())
