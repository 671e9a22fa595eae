"""Writes a timeline of a few steps."""

from pathlib import Path
from typing import Any

import lightning as L
from torch.profiler import ProfilerActivity, profile, supported_activities

from rfdit.batch import Batch
from rfdit.callbacks.capabilities import flow_module
from rfdit.counted import counted
from rfdit.limits import Count, Index
from rfdit.training.module import FlowModule


class Trace(L.Callback):
    """Writes `trace_rank0.json`, one per rank, for chrome://tracing or ui.perfetto.dev.

    first_step, steps: the optimiser steps to record, counted from this start of the run; the first ones
        compile and warm up. A run that ends earlier writes what it has recorded.
    """

    def __init__(self, *, folder: str, first_step: Index = 10, steps: Count = 3) -> None:
        self.folder, self.first_step, self.steps = Path(folder), first_step, steps
        self._done = 0
        self._profile: profile | None = None

    def check(self, trainer: L.Trainer, module: FlowModule, first_step: int) -> None:
        """Raises ValueError for steps that a new run never reaches.

        A run that is resumed has its trace already, or may be near its end.
        """
        if first_step == 0 and 0 < trainer.max_steps <= self.first_step:
            raise ValueError(
                f"callbacks.trace.first_step={self.first_step} is never reached in the "
                f"{counted(trainer.max_steps, 'step')} up to trainer.max_steps, so no trace would be "
                "written; give a lower one, or more steps"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._done = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._profile is None and self.first_step == self._done:
            activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & set(supported_activities())
            self._profile = profile(activities=activities)
            self._profile.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        module = flow_module(pl_module)
        self._done += module.stepped
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
        self._profile, self.first_step = None, -1  # only once
