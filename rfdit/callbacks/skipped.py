"""Samples that could not be read are counted where everybody looks."""

from collections.abc import Callable
from typing import Any

import lightning as L

from rfdit.callbacks.steps import OptimizerSteps
from rfdit.limits import Count


class SkippedSamples(L.Callback):
    """Logs `data/skipped_<reason>` for every reason the data source counts, on this rank."""

    def __init__(self, *, every_n_steps: Count) -> None:
        self.every_n_steps = every_n_steps
        self._steps = OptimizerSteps()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps.start(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._steps(trainer) and trainer.global_step % self.every_n_steps == 0:
            self._log(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = self._log(trainer)
        if counts and trainer.is_global_zero:
            listed = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
            print(f"skipped samples: {listed}")

    @staticmethod
    def _log(trainer: L.Trainer) -> dict[str, int]:
        count: Callable[[], dict[str, int]] | None = getattr(trainer.datamodule, "skipped", None)  # type: ignore[attr-defined]
        counts = {reason: n for reason, n in count().items() if n} if count is not None else {}
        if counts:
            for logger in trainer.loggers:
                metrics = {f"data/skipped_{reason}": float(n) for reason, n in counts.items()}
                logger.log_metrics(metrics, step=trainer.global_step - 1)
        return counts
