"""Ctrl-C and SIGTERM end a run with a checkpoint."""

import signal
from types import FrameType
from typing import Any

import lightning as L


class GracefulStop(L.Callback):
    """The first signal lets the step finish and the checkpoint be written; a second one interrupts.

    stopped_by: the signal that ended the run, None if none did.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopped_by is not None:
                raise KeyboardInterrupt
            self.stopped_by = signal.Signals(number)
            trainer.should_stop = True

        self._previous = {s: signal.signal(s, stop) for s in self.SIGNALS}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)
