"""The time limit of one start of a run."""

import time
from typing import Any

import lightning as L
import torch

SHARED_EVERY = 10  # steps between exchanges of the clock among ranks, each of which waits for the device


class TimeLimit(L.Callback):
    """Ends the run after a time, which counts from when this is built and begins anew at every start.

    seconds: the limit. time_is_up: True from the step on that is the last one for this reason, for the
        callbacks that come after this one.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.time_is_up = False
        self._began = time.monotonic()

    @property
    def remaining(self) -> float:
        """Seconds until the limit."""
        return self.seconds - (time.monotonic() - self._began)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not pl_module.stepped:  # gradients are only accumulated
            return
        if trainer.world_size == 1:
            self.time_is_up = self.remaining <= 0
        elif trainer.global_step % SHARED_EVERY == 0:
            # By the clock of rank 0, so that all leave at the same step.
            over = torch.tensor(int(self.remaining <= 0), device=pl_module.device)
            torch.distributed.broadcast(over, src=0)
            self.time_is_up = bool(over)
        trainer.should_stop = trainer.should_stop or self.time_is_up
