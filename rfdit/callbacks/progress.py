"""What a person sees while a run goes on."""

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rfdit.batch import Batch
from rfdit.training.module import FlowModule


class ProgressLine(L.Callback):
    """A bar with steps, loss, images per second and time left; in a log file, a line now and then.

    refresh_seconds: how often the loss is read from the device, and the bar drawn.
    """

    def __init__(self, *, refresh_seconds: float = 0.5) -> None:
        self.refresh_seconds = refresh_seconds
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._drawn = self._started = time.monotonic()
        self._images, self._first_step = 0, trainer.global_step
        self._console = Console()
        if not trainer.is_global_zero:
            return
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} img/s "),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            steps = trainer.max_steps if trainer.max_steps > 0 else None
            self._task = self._bar.add_task("", total=steps, completed=trainer.global_step, loss=0, speed=0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._images += len(batch) * trainer.world_size
        now = time.monotonic()
        wait = self.refresh_seconds if self._bar is not None else 20 * self.refresh_seconds
        if not trainer.is_global_zero or now - self._drawn < wait:
            return
        assert isinstance(pl_module, FlowModule)
        assert pl_module.last_loss is not None
        self._drawn = now
        loss, speed = float(pl_module.last_loss.total), self._images / (now - self._started)
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, loss=loss, speed=speed)
            return
        done = trainer.global_step - self._first_step
        left = (trainer.max_steps - trainer.global_step) * (now - self._started) / max(done, 1)
        of = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        remaining = f"  {left / 60:.1f} min left" if of else ""
        print(f"step {trainer.global_step}{of}  loss {loss:.4f}  {speed:.0f} img/s{remaining}", flush=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._stop()
