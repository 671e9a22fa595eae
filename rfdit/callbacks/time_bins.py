"""Logs the loss by time, the first thing to look at when it stalls."""

from typing import Any

import lightning as L
import torch

from rfdit.callbacks.capabilities import flow_module, logged_step
from rfdit.limits import Count


class TimeBinLoss(L.Callback):
    """Logs the mean training loss in equal bins of t, over all samples of all ranks since the last log.

    `train/loss_t0.3` is the mean for t in [0.3, 0.4); a bin without samples is left out.
    """

    def __init__(self, *, every_n_steps: Count, bins: Count = 10) -> None:
        self.every_n_steps, self.bins = every_n_steps, bins
        self._sums = self._counts = torch.zeros(bins)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        module = flow_module(pl_module)
        loss = module.last_loss
        assert loss is not None
        self._sums, self._counts = self._sums.to(loss.t), self._counts.to(loss.t)
        index = (loss.t * self.bins).long().clamp(0, self.bins - 1)
        # Out of place: the old tensors may be logged values by now.
        self._sums = self._sums.index_add(0, index, loss.per_sample)
        self._counts = self._counts.index_add(0, index, torch.ones_like(loss.t))
        if module.stepped and logged_step(trainer, self.every_n_steps):
            self._log(trainer)

    def _log(self, trainer: L.Trainer) -> None:
        if trainer.world_size > 1:
            both = torch.stack([self._sums, self._counts])
            torch.distributed.all_reduce(both)
            self._sums, self._counts = both
        sums, counts = self._sums.tolist(), self._counts.tolist()
        means = {f"train/loss_t{i / self.bins:.1f}": s / n for i, (s, n) in enumerate(zip(sums, counts)) if n}
        # Not with `log_dict`, which would repeat the old value of a bin without samples.
        for logger in trainer.loggers:
            logger.log_metrics(means, step=trainer.global_step - 1)
        self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
