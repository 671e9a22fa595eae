"""When checkpoints are written: the last state, and the best by validation loss."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from rfdit.callbacks.steps import OptimizerSteps
from rfdit.limits import Count
from rfdit.training.metrics_csv import MetricsCSV


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, written every N steps and when training ends, and `best.ckpt`.

    every_n_steps: how much work a kill may cost.
    monitor: the metric that decides what is best, lower is better; None keeps no best.
    """

    def __init__(self, *, folder: str, every_n_steps: Count = 1000, monitor: str | None = "val/loss") -> None:
        self.folder, self.every_n_steps, self.monitor = Path(folder), every_n_steps, monitor
        self.best = float("inf")
        self._steps = OptimizerSteps()
        self._saved_step = -1

    @property
    def last_path(self) -> Path:
        """Where the last state is."""
        return self.folder / "last.ckpt"

    def save_last(self, trainer: L.Trainer) -> None:
        """Writes the state of now, once per step."""
        if trainer.global_step != self._saved_step:
            self._save(trainer, self.last_path)
            self._saved_step = trainer.global_step

    @staticmethod
    def _save(trainer: L.Trainer, path: Path) -> None:
        """Writes metrics.csv first: what was logged before a checkpoint is not logged again after a resume."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.sync()
        trainer.save_checkpoint(path)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps.start(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # A run that is asked to stop is saved at once: Lightning validates before it ends.
        due = trainer.global_step % self.every_n_steps == 0 or trainer.should_stop
        if self._steps(trainer) and due:
            log_step(trainer)
            self.save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = trainer.callback_metrics.get(self.monitor or "")
        if trainer.state.fn == "fit" and score is not None and float(score) < self.best:
            self.best = float(score)
            self._save(trainer, self.folder / "best.ckpt")
            self._saved_step = -1  # the last checkpoint knows nothing of this best yet

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def log_step(trainer: L.Trainer) -> None:
    """Gives metrics.csv the row of the step that callbacks are called for now.

    Lightning logs it after them, which is too late for a run that is killed when the checkpoint has
    just been written; it has no public way to ask for these values without those of earlier steps.
    """
    connector = trainer._logger_connector
    loggers = [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
    if loggers and connector.should_update_logs:
        metrics = connector.metrics["log"]  # by every rank: some are summed over all
        if trainer.is_global_zero:  # numbers wait for the device
            values = {name: float(value) for name, value in metrics.items()}
            for logger in loggers:
                logger.log_metrics(values, step=trainer.global_step - 1)
