"""Ends a run with a checkpoint on Ctrl-C, SIGTERM and SIGUSR1."""

import os
import signal
from types import FrameType
from typing import Any

import lightning as L
import torch

SHARED_EVERY = 10  # steps between exchanges of signals among ranks, each of which waits for the device


class GracefulStop(L.Callback):
    """The first signal lets the step finish and the checkpoint be written; a second one interrupts.

    SIGUSR1 is what SLURM is asked to send before the time of a job is over.

    stopped_by: the signal that ends the run; None without one.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopped_by is not None:
                interrupt = self._previous[signal.SIGINT]
                if callable(interrupt):  # the program's own
                    interrupt(signal.SIGINT, frame)
                raise KeyboardInterrupt
            self.stopped_by = signal.Signals(number)
            if trainer.is_global_zero:  # a signal may have come in the middle of a print
                os.write(2, answer_to(self.stopped_by).encode())

        self._previous = {s: signal.signal(s, stop) for s in self.SIGNALS}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # Between optimiser steps, so that no gathered gradient is lost.
        if not pl_module.stepped:
            return
        if trainer.world_size == 1:
            trainer.should_stop = trainer.should_stop or self.stopped_by is not None
        elif trainer.global_step % SHARED_EVERY == 0:
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


def answer_to(number: signal.Signals) -> str:
    """What is printed at once, since the step and the checkpoint may take a while."""
    again = "; Ctrl-C again ends it at once, without one" if number == signal.SIGINT else ""
    return f"\n{number.name}: the run ends after this step, with a checkpoint{again}\n"
