"""What the machine does in a few steps, as a timeline."""

from pathlib import Path
from typing import Any

import lightning as L
from torch.profiler import ProfilerActivity, profile, supported_activities

from rfdit.batch import Batch
from rfdit.callbacks.steps import OptimizerSteps
from rfdit.limits import Count, Index


class Trace(L.Callback):
    """Writes `trace_rank0.json`, one per rank, for chrome://tracing or ui.perfetto.dev.

    folder: where to. first_step, steps: which optimiser steps of this start of the run; the first ones
        compile and warm up. A run that ends during them writes what there is.
    """

    def __init__(self, *, folder: str, first_step: Index = 10, steps: Count = 3) -> None:
        self.folder, self.first_step, self.steps = Path(folder), first_step, steps
        self._steps = OptimizerSteps()
        self._done = 0
        self._profile: profile | None = None

    def check(self, steps: int) -> None:
        """Raises ValueError if this start of the run, of so many steps, has none of them."""
        if steps <= self.first_step:
            raise ValueError(
                f"callbacks.trace.first_step={self.first_step} is never reached in the {steps} steps up to "
                "trainer.max_steps, so that there would be no trace; give a lower one, or more steps"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps.start(trainer)
        self._done = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._profile is None and self.first_step == self._done:
            wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & set(supported_activities())
            self._profile = profile(activities=wanted)
            self._profile.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._done += self._steps(trainer)
        if self._profile is not None and self._done >= self.first_step + self.steps:
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._profile is not None:
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        assert self._profile is not None
        self._profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.folder / f"trace_rank{trainer.global_rank}.json"))
        self._profile, self.first_step = None, -1  # once
