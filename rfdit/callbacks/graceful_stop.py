"""Ctrl-C and SIGTERM end a run with a checkpoint."""

import signal
from types import FrameType
from typing import Any

import lightning as L
import torch

from rfdit.callbacks.steps import OptimizerSteps

RANKS_ASK_EVERY = 10  # steps between looks at the other ranks' signals, each of which waits for the device


class GracefulStop(L.Callback):
    """The first signal lets the step finish and the checkpoint be written; a second one interrupts.

    stopped_by: the signal that ended the run, None if none did.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._steps = OptimizerSteps()
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopped_by is not None:
                raise KeyboardInterrupt
            self.stopped_by = signal.Signals(number)

        self._steps.start(trainer)
        self._previous = {s: signal.signal(s, stop) for s in self.SIGNALS}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # Between optimiser steps, so that no gathered gradient is lost.
        if not self._steps(trainer):
            return
        if trainer.world_size == 1:
            trainer.should_stop = trainer.should_stop or self.stopped_by is not None
        elif trainer.global_step % RANKS_ASK_EVERY == 0:
            # All ranks leave at the same step, or those that stay would wait for ever.
            signals = torch.tensor(self.stopped_by or 0, device=pl_module.device)
            torch.distributed.all_reduce(signals, torch.distributed.ReduceOp.MAX)
            if number := int(signals):
                self.stopped_by = signal.Signals(number)
                trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)
