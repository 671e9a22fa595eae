"""Metrics of generated images during training."""

import time
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from rfdit.callbacks.capabilities import (
    TakesEvaluations,
    TimesTraining,
    at_last_step,
    callbacks_of,
    flow_module,
    stopping_signal,
)
from rfdit.config.build import latent_shape
from rfdit.counted import counted
from rfdit.eval.evaluation import Evaluation
from rfdit.eval.generation import EvaluationStoppedError, generate_rows
from rfdit.eval.inputs import ChosenInputs
from rfdit.eval.protocol_settings import protocol_of, weights_settings
from rfdit.eval.records import EvaluationRecord, append_record, drop_after
from rfdit.limits import Count, Positive, Seed
from rfdit.processes.rank import Process
from rfdit.sampler import AdaptiveSolver, Sampler
from rfdit.training.module import FlowModule


class Evaluate(L.Callback):
    """Runs an evaluation of the EMA weights every N steps and at the end, on all ranks together.

    evaluation: the images and their metrics; None for no evaluation. folder: the folder of evaluations.jsonl.
    batch_size: images that each rank generates at once.
    max_minutes: limit for one evaluation. A longer one is stopped and not recorded, since a value over
        fewer images is not comparable, and the run goes on without further evaluations.
    seed: seed of noise, labels and draws of metrics, the same at every step.

    Values are logged as `eval/NAME`. Training's random numbers and weights are not changed. The
    feature network stays on the device between evaluations.
    Raises ValueError before training for an evaluation that does not fit the model.
    """

    def __init__(
        self,
        *,
        evaluation: Evaluation | None,
        folder: str,
        sampler: Sampler,
        every_n_steps: Count = 1000,
        batch_size: Count = 32,
        max_minutes: Positive | None = None,
        seed: Seed = 0,
    ) -> None:
        self.evaluation, self.folder, self.sampler = evaluation, Path(folder), sampler
        self.every_n_steps, self.batch_size = every_n_steps, batch_size
        self.max_minutes, self.seed = max_minutes, seed
        self._chosen: ChosenInputs | None = None
        self._too_long = False

    def check(self, trainer: L.Trainer, module: FlowModule, first_step: int) -> None:
        """Raises ValueError for an evaluation or a sampler that does not fit the model."""
        if self.evaluation is not None:
            self.sampler.check(module.network.backbone)
        self._prepare(module)

    def _prepare(self, module: FlowModule) -> None:
        if self.evaluation is None:
            return
        with isolate_rng():
            self._chosen = self.evaluation.choose_inputs(module.network.conditioner, seed=self.seed)
            _, *sides = self._latent_shape(module)
            height, width = (side * module.autoencoder.downsampling for side in sides)
            self.evaluation.prepare((height, width), module.device)

    @staticmethod
    def _latent_shape(module: FlowModule) -> tuple[int, int, int]:
        """(c, h, w) of the latents that the run trains on."""
        return latent_shape(module.record["config"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = flow_module(pl_module)
        self._prepare(module)  # now on its device
        adaptive = isinstance(self.sampler.solver, AdaptiveSolver)
        if self.evaluation is not None and module.sharded and adaptive:
            raise ValueError(
                "eval: sampler=dopri5 takes as many evaluations as a batch needs, and under strategy=fsdp all ranks "
                "must take equally many; use another sampler"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            drop_after(self.folder, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        due = trainer.global_step % self.every_n_steps == 0 or at_last_step(trainer)
        if not pl_module.stepped or not due or self.evaluation is None or self._too_long:
            return
        module = flow_module(pl_module)
        started = time.perf_counter()
        with isolate_rng():
            self._evaluate(trainer, module, self.evaluation)
        for clock in callbacks_of(trainer, TimesTraining):
            clock.leave_out(time.perf_counter() - started)

    def _evaluate(self, trainer: L.Trainer, module: FlowModule, evaluation: Evaluation) -> None:
        assert self._chosen is not None
        pipeline = module.pipeline(self.sampler, self._latent_shape(module), batch_size=self.batch_size)
        process = Process(trainer.global_rank, trainer.world_size, trainer.local_rank)
        started = time.monotonic()
        if trainer.is_global_zero:
            print(
                f"step {trainer.global_step}  evaluation: {counted(evaluation.samples, 'image')}", flush=True
            )

        def stop() -> bool:
            minutes = (time.monotonic() - started) / 60
            return stopping_signal(trainer) is not None or (
                self.max_minutes is not None and minutes > self.max_minutes
            )

        batches = generate_rows(
            evaluation, pipeline, self._chosen, seed=self.seed, process=process, stop=stop
        )
        values: dict[str, float] = {}
        try:
            if process.rank == 0:
                values = evaluation.measure(batches)
            else:  # generates its batches, which rank 0 measures
                deque(batches, maxlen=0)
        except EvaluationStoppedError as stopped:
            by_signal = process.any(stopping_signal(trainer) is not None, module.device)
            self._report_stop(trainer, by_signal, stopped.done)
            return
        values = trainer.strategy.broadcast(values)
        logged = {f"eval/{name}": value for name, value in values.items()}
        module.log_dict(logged, logger=False)
        for callback in callbacks_of(trainer, TakesEvaluations):
            callback.take_evaluation(logged)
        if trainer.is_global_zero:
            weights = weights_settings(module.record.get("config", {}), "ema" if module.averages else "raw")
            record = EvaluationRecord(
                name=evaluation.name,
                step=trainer.global_step,
                weights=weights["name"],
                values=values,
                protocol=protocol_of(evaluation, pipeline, self._chosen, weights=weights, seed=self.seed),
                seconds=time.monotonic() - started,
            )
            append_record(self.folder, record)
            print(f"step {record.step}  {record.line} ({record.seconds:.0f} s)", flush=True)
            for logger in trainer.loggers:
                # In the row of Lightning's values of this step, which Lightning counts from 0.
                logger.log_metrics(logged, step=trainer.global_step - 1)

    def _report_stop(self, trainer: L.Trainer, by_signal: bool, done: int) -> None:
        """Prints why an evaluation was stopped after `done` images; all ranks agree on the reason."""
        reason = "by a signal"
        if not by_signal:
            self._too_long = True
            reason = (
                f"by callbacks.evaluate.max_minutes={self.max_minutes:g}, and is not tried again in this run; "
                "give more minutes or fewer eval.samples"
            )
        if trainer.is_global_zero:
            assert self.evaluation is not None
            print(
                f"step {trainer.global_step}  {self.evaluation.name} was stopped after {done:,} of "
                f"{counted(self.evaluation.samples, 'image')}, with nothing recorded, {reason}",
                flush=True,
            )
