"""Detection of operations that wait for the GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Raises RuntimeError for operations that make the host wait for a GPU; does nothing on a CPU."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class NoWaiting(L.Callback):
    """Lets nothing wait for the GPU from the second step's start to the end of step `last`."""

    def __init__(self, *, last: int) -> None:
        self.last, self.seen = last, 0

    def _set(self, module: L.LightningModule, mode: str) -> None:
        if module.device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if 1 <= trainer.global_step < self.last:
            self.seen += 1
            self._set(pl_module, "error")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step >= self.last:
            self._set(pl_module, "default")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._set(pl_module, "default")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.seen == self.last - 1
