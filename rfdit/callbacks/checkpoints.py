"""Writes checkpoints: the last state, the best by a metric, and those that are kept on the way."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

from rfdit.callbacks.capabilities import EvaluatesImages, WritesDurably, callbacks_of
from rfdit.checkpoint.kept import Keeping, kept_file
from rfdit.limits import Count, Limit
from rfdit.training.module import FlowModule

Mode = Annotated[str, Limit("min or max", lambda mode: mode in ("min", "max"))]
OF_EVALUATIONS = "eval/"  # how the names of metrics of generated images begin


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, written every N steps and when training ends, `best.ckpt`, and some on the way.

    every_n_steps: steps between checkpoints, which a kill may cost.
    keep_every: the checkpoint of every multiple of so many steps is also kept for good, as
        `step_00010000.ckpt`; None keeps none.
    keep_last: the number of the newest checkpoints that are kept; all but the newest, `last.ckpt`, need the
        space of a further file.
    monitor: the metric that decides what is best, compared at every validation, or, for `eval/...`, at every
        evaluation; None keeps no best. mode: min if a lower value is better, or max.
    """

    def __init__(
        self,
        *,
        folder: str,
        every_n_steps: Count = 1000,
        keep_every: Count | None = None,
        keep_last: Count = 1,
        monitor: str | None = "val/loss",
        mode: Mode = "min",
    ) -> None:
        self.folder, self.every_n_steps, self.monitor = Path(folder), every_n_steps, monitor
        self.keep_every, self.keep_last = keep_every, keep_last
        self._sign = 1.0 if mode == "min" else -1.0
        self.best = self._sign * math.inf
        self._recent: list[int] = []  # steps whose checkpoints are kept for keep_last
        self._evaluated: float | None = None  # value of the monitored metric at the end of this step
        self._told = False
        self._saved_step = -1

    def check(self, trainer: L.Trainer, module: FlowModule, first_step: int) -> None:
        """Raises ValueError for a metric of evaluations in a run without any."""
        evaluates = any(each.evaluation is not None for each in callbacks_of(trainer, EvaluatesImages))
        if (self.monitor or "").startswith(OF_EVALUATIONS) and not evaluates:
            raise ValueError(
                f"callbacks.checkpoints.monitor={self.monitor} is a metric of generated images, which this run does "
                "not measure; give eval=quick, or monitor val/loss"
            )

    @property
    def last_path(self) -> Path:
        """The file of the last state."""
        return self.folder / "last.ckpt"

    def save_last(self, trainer: L.Trainer) -> None:
        """Write the present state, once per step."""
        if trainer.global_step != self._saved_step:
            self._save(trainer, self.last_path, self._keeping(trainer.global_step))
            self._saved_step = trainer.global_step

    @staticmethod
    def _save(trainer: L.Trainer, path: Path, keeping: Keeping | None = None) -> None:
        """Write metrics.csv first: what was logged before a checkpoint is not logged again after a resume."""
        for logger in trainer.loggers:
            if isinstance(logger, WritesDurably):
                logger.sync()
        started = time.monotonic()
        trainer.save_checkpoint(path, storage_options=keeping)
        if trainer.is_global_zero:
            kept = "" if keeping is None else f", kept as {keeping.name.name}"
            seconds = time.monotonic() - started
            print(f"step {trainer.global_step}  checkpoint: {path}{kept} ({seconds:.1f} s)", flush=True)

    def _keeping(self, step: int) -> Keeping | None:
        """What else to do with the checkpoint of a step, which is recorded in it."""
        if self.keep_last == 1:
            return Keeping(kept_file(self.folder, step)) if self._for_good(step) else None
        recent = [*(other for other in self._recent if other < step), step]
        self._recent = recent[-self.keep_last :]
        old = [other for other in recent[: -self.keep_last] if not self._for_good(other)]
        return Keeping(kept_file(self.folder, step), [kept_file(self.folder, other) for other in old])

    def _for_good(self, step: int) -> bool:
        return self.keep_every is not None and step % self.keep_every == 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not pl_module.stepped:
            return
        if self._evaluated is not None:
            self._compare(trainer, self._evaluated)
            self._evaluated = None
        # A run that is asked to stop is saved at once: Lightning validates before it ends.
        step = trainer.global_step
        if step % self.every_n_steps == 0 or self._for_good(step) or trainer.should_stop:
            log_step(trainer)
            self.save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or self.monitor is None or self.monitor.startswith(OF_EVALUATIONS):
            return
        score = trainer.callback_metrics.get(self.monitor)
        if score is None:
            self._tell_names(trainer.callback_metrics)
        else:
            self._compare(trainer, float(score))

    def take_evaluation(self, values: Mapping[str, float]) -> None:
        """Take what an evaluation has found, by logged name, before the end of its step."""
        if self.monitor is None or not self.monitor.startswith(OF_EVALUATIONS):
            return
        if self.monitor in values:
            self._evaluated = float(values[self.monitor])
        else:
            self._tell_names(values)

    def _tell_names(self, names: Mapping[str, Any]) -> None:
        """Say once that the monitored metric is not there, and which are."""
        if not self._told:
            rank_zero_warn(
                f"callbacks.checkpoints.monitor={self.monitor} is not logged, so there is no best.ckpt; logged are "
                f"{', '.join(sorted(names))}"
            )
        self._told = True

    def _compare(self, trainer: L.Trainer, score: float) -> None:
        """Write `best.ckpt` if the score is better than all before."""
        if self._sign * score < self._sign * self.best:
            self.best = score
            self._save(trainer, self.folder / "best.ckpt")
            self._saved_step = -1  # the last checkpoint does not hold this best yet

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitor": self.monitor, "recent": self._recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._recent = list(state_dict["recent"])
        if state_dict["monitor"] == self.monitor:
            self.best = state_dict["best"]


def log_step(trainer: L.Trainer) -> None:
    """Write the row of the current step to metrics.csv.

    Lightning logs it after the callbacks, too late for a run that is killed just after a checkpoint was
    written. It has no public way to get these values without those of earlier steps.
    """
    connector = trainer._logger_connector
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WritesDurably)]
    if loggers and connector.should_update_logs:
        metrics = connector.metrics["log"]  # on every rank, since some are summed over all
        if trainer.is_global_zero:  # numbers wait for the device
            values = {name: float(value) for name, value in metrics.items()}
            for logger in loggers:
                logger.log_metrics(values, step=trainer.global_step - 1)
