"""Progress of training on the screen and in the log."""

import time
from collections import deque
from typing import Any

import lightning as L
import torch
from torch import Tensor

from rfdit.batch import Batch
from rfdit.callbacks.capabilities import LimitsTime, callbacks_of, flow_module
from rfdit.progress import ProgressDisplay, duration

SMOOTHING = 0.02  # share of a batch in the loss that is shown: an average over some fifty batches
SECONDS = 20.0  # over which the speed is measured


class ProgressLine(L.Callback):
    """Shows steps, times, losses, learning rate and speed on rank 0, and tells of every validation.

    The loss is averaged on the device, and read only when it is drawn, since that waits for the device.
    """

    def __init__(self) -> None:
        self._display: ProgressDisplay | None = None
        self._loss: Tensor | None = None
        self._weight = 0.0  # of the batches in that average
        self._images = 0
        self._drawn: deque[tuple[float, int, int]] = deque()  # time, images and steps at each draw
        self._validation = 0.0  # time at which it began
        self._validated: float | None = None  # the last validation loss

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        limits = list(callbacks_of(trainer, LimitsTime))
        self._display = ProgressDisplay(
            "training",
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            unit="steps",
            completed=trainer.global_step,
            shown=trainer.is_global_zero,
            limit=(lambda: limits[0].remaining) if limits else None,
        )
        self._loss, self._weight, self._images = None, 0.0, 0
        self._start_window(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._images += len(batch) * trainer.world_size
        module = flow_module(pl_module)
        assert module.last_loss is not None
        if self._loss is None:
            self._loss = torch.zeros_like(module.last_loss.total, dtype=torch.float32)
        self._loss.lerp_(module.last_loss.total.float(), SMOOTHING)
        self._weight += SMOOTHING * (1 - self._weight)
        if self._display is not None and self._display.due:
            self._display.update(trainer.global_step, self._note(trainer))

    def _note(self, trainer: L.Trainer) -> str:
        assert self._loss is not None
        parts = [f"loss {float(self._loss) / self._weight:.4f}"]
        if self._validated is not None:
            parts.append(f"val {self._validated:.4f}")
        parts.append(f"lr {trainer.optimizers[0].param_groups[0]['lr']:.2e}")
        now = time.monotonic()
        while len(self._drawn) > 1 and now - self._drawn[0][0] > SECONDS:
            self._drawn.popleft()
        then, images, step = self._drawn[0]
        self._drawn.append((now, self._images, trainer.global_step))
        parts += speed(self._images - images, trainer.global_step - step, now - then)
        return "  ".join(parts)

    def _start_window(self, trainer: L.Trainer) -> None:
        """Measure the speed from now on."""
        self._drawn = deque([(time.monotonic(), self._images, trainer.global_step)])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # On every rank, since some metrics are summed over all.
        loss = trainer.callback_metrics.get("val/loss")
        self._validated = None if loss is None else float(loss)
        if trainer.is_global_zero and self._validated is not None and self._display is not None:
            value, seconds = f"val/loss {self._validated:.4f}", time.monotonic() - self._validation
            print(f"step {trainer.global_step}  validation: {value} ({seconds:.1f} s)", flush=True)
        self._start_window(trainer)

    def leave_out(self, seconds: float) -> None:
        """Let the speed be that of the steps after something else, which has just ended."""
        self._drawn = deque((then + seconds, images, step) for then, images, step in self._drawn)

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._display is not None:
            self._display.completed = trainer.global_step
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()


def speed(images: int, steps: int, seconds: float) -> list[str]:
    """Images a second, and the seconds of a step where it takes more than one; nothing where nothing is known."""
    if not steps or seconds <= 0:
        return []
    rate = images / seconds
    texts = [f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"]
    if seconds > steps:
        texts.append(
            f"{seconds / steps:.1f} s/step" if seconds < 60 * steps else f"{duration(seconds / steps)} a step"
        )
    return texts
