"""A time budget for training, turned into a number of optimiser steps by a measurement.

A schedule that decays to zero has to know the number of steps, which depends on how fast the machine is.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch

from rfdit.callbacks.capabilities import callbacks_of, flow_module
from rfdit.checkpoint.saved_run import read_checkpoint
from rfdit.training.trainer import seconds_of

WARMUP_STEPS = 3  # not timed: they compile, and fill caches
LEAST_STEPS = 3  # timed even if they take longer than SECONDS
SECONDS = 10.0  # of the measurement
SHARE = 0.9  # of the budget that steps get; the rest is for validations, grids, evaluations and checkpoints


class Fittable(Protocol):
    """The parts of a run."""

    @property
    def module(self) -> L.LightningModule: ...
    @property
    def data(self) -> L.LightningDataModule: ...
    @property
    def trainer(self) -> L.Trainer: ...


class StepTimer(L.Callback):
    """Times optimiser steps, and ends the run after `SECONDS` of them."""

    def __init__(self) -> None:
        self._steps, self._began, self.seconds_per_step = 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not flow_module(pl_module).stepped:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self._steps += 1
        if self._steps <= WARMUP_STEPS:
            self._began = time.perf_counter()
            return
        elapsed, timed = time.perf_counter() - self._began, self._steps - WARMUP_STEPS
        self.seconds_per_step = elapsed / timed
        trainer.should_stop = timed >= LEAST_STEPS and elapsed >= SECONDS


def steps_within(
    config: dict[str, Any], build: Callable[[dict[str, Any]], Fittable], resume: Path | None
) -> int:
    """The number of steps of a run that end within `trainer.budget`, which the measurement is part of.

    It is at most `trainer.budget_max_steps`, and at least `trainer.budget_min_steps` if these fit into
    `trainer.max_time`: a slow machine then takes longer than the budget.

    Trains for some seconds on the run's own data, without the callbacks that validate, sample and write,
    and throws the result away. A resumed run keeps the steps, and the schedule, of its checkpoint.

    build: makes the parts of a run from a configuration. resume: the checkpoint; None for a new run.
    Raises ValueError for a budget shorter than a step, and for several devices.
    """
    if resume is not None:
        return int(read_checkpoint(resume, weights=False).config["trainer"]["max_steps"])
    settings = config["trainer"]
    budget = settings["budget"]
    if settings["devices"] * settings["num_nodes"] > 1:
        raise ValueError(
            f"trainer.budget={budget} is measured on one device; give trainer.max_steps for several"
        )
    began = time.perf_counter()
    unlimited = {"max_steps": -1, "max_time": None, "budget": None, "val_every_n_steps": None}
    callbacks = {
        "ema": config["callbacks"].get("ema"),
        "timer": {"_target_": f"{__name__}.{StepTimer.__name__}"},
    }
    run = build(config | {"trainer": settings | unlimited, "callbacks": callbacks, "logger": {}})
    run.trainer.fit(run.module, datamodule=run.data)
    (timer,) = callbacks_of(run.trainer, StepTimer)
    step = timer.seconds_per_step
    steps, reason = within_bounds(settings, step=step, measured=time.perf_counter() - began)
    if steps < 1:
        raise ValueError(f"trainer.budget={budget} is too short: a step takes {step:.3g} s on this machine")
    print(f"{step:.3g} s a step, so trainer.max_steps={steps} for {reason}", flush=True)
    return steps


def within_bounds(settings: dict[str, Any], *, step: float, measured: float) -> tuple[int, str]:
    """The steps of a budget between its bounds, and the setting that decided.

    settings: of the trainer. step: seconds of a step. measured: seconds that the measurement took.
    """

    def fitting(duration: str) -> int:
        return int((SHARE * seconds_of(duration) - measured) / step)

    budget = settings["budget"]
    least, most, limit = (settings[name] for name in ("budget_min_steps", "budget_max_steps", "max_time"))
    steps = fitting(budget)
    if most is not None and most < steps:
        return most, f"trainer.budget_max_steps, which fit into {budget}"
    if least is not None and steps < least:
        wanted = least if limit is None else min(least, fitting(limit))
        return max(steps, wanted), f"trainer.budget_min_steps={least}, more than fit into {budget}"
    return steps, f"trainer.budget={budget}"
