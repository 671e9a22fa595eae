"""Metrics of generated pictures during training."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from rfdit.callbacks.graceful_stop import GracefulStop
from rfdit.callbacks.steps import OptimizerSteps
from rfdit.callbacks.throughput import Throughput
from rfdit.eval.evaluation import Evaluation
from rfdit.eval.inputs import Wanted
from rfdit.eval.protocol import weights_settings
from rfdit.eval.records import EvaluationRecord, append_record, drop_after
from rfdit.eval.run import EvaluationStoppedError, Ranks, protocol_of, rows_of_all
from rfdit.limits import Count, Positive
from rfdit.sampler import Dopri5, Pipeline, Sampler
from rfdit.training.module import FlowModule


class Evaluate(L.Callback):
    """Runs an evaluation on the EMA weights every N steps and at the end, on all ranks together.

    evaluation: what is measured; None is nothing. folder: of evaluations.jsonl.
    latent_size: (height, width) or side of the latents of the pictures, as of the model.
    batch_size: pictures that each rank makes at once.
    max_minutes: an evaluation that takes longer is stopped and not recorded, since a number of fewer
        pictures is another number, and the run goes on without any.
    seed: of noise, labels and draws of metrics, the same at every step.

    Values are logged as `eval/NAME`. Training's random numbers and its weights stay untouched. The
    feature network stays on the device between evaluations.
    Raises ValueError before training for an evaluation that does not fit the model.
    """

    def __init__(
        self,
        *,
        evaluation: Evaluation | None,
        folder: str,
        sampler: Sampler,
        latent_size: int | Sequence[int],
        every_n_steps: Count = 1000,
        batch_size: Count = 32,
        max_minutes: Positive | None = None,
        seed: int = 0,
    ) -> None:
        self.evaluation, self.folder, self.sampler = evaluation, Path(folder), sampler
        height, width = (latent_size, latent_size) if isinstance(latent_size, int) else latent_size
        self.latent_size = (height, width)
        self.every_n_steps, self.batch_size = every_n_steps, batch_size
        self.max_minutes, self.seed = max_minutes, seed
        self._wanted: Wanted | None = None
        self._too_long = False
        self._steps = OptimizerSteps()

    def check(self, module: FlowModule) -> None:
        """Raises ValueError for an evaluation that does not fit the model."""
        if self.evaluation is None:
            return
        with isolate_rng():
            self._wanted = self.evaluation.wanted(module.network.conditioner, seed=self.seed)
            size = [side * module.autoencoder.downsampling for side in self.latent_size]
            self.evaluation.prepare((size[0], size[1]), module.device)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, FlowModule)
        self.check(pl_module)  # now on its device
        if self.evaluation is not None and pl_module.sharded and isinstance(self.sampler.solver, Dopri5):
            raise ValueError(
                "eval: sampler=dopri5 takes as many evaluations as a batch needs, and under strategy=fsdp all ranks "
                "must take as many; use another sampler"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps.start(trainer)
        if trainer.is_global_zero:
            drop_after(self.folder, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if not self._steps(trainer) or not due or self.evaluation is None or self._too_long:
            return
        assert isinstance(pl_module, FlowModule)
        started = time.perf_counter()
        with isolate_rng():
            self._evaluate(trainer, pl_module, self.evaluation)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.leave_out(time.perf_counter() - started)

    def _evaluate(self, trainer: L.Trainer, module: FlowModule, evaluation: Evaluation) -> None:
        assert self._wanted is not None
        pipeline = self._pipeline(trainer, module)
        ranks = Ranks(rank=trainer.global_rank, world=trainer.world_size)
        started = time.monotonic()
        batches = rows_of_all(
            evaluation, pipeline, self._wanted, seed=self.seed, ranks=ranks, stop=self._stop(trainer, started)
        )
        try:
            if ranks.rank == 0:
                values = evaluation.measure(batches)
            else:  # its share, all of which rank 0 measures
                values = {}
                deque(batches, maxlen=0)
        except EvaluationStoppedError as stopped:
            self._give_up(trainer, module, evaluation, ranks, stopped.done)
            return
        values = trainer.strategy.broadcast(values)
        module.log_dict({f"eval/{name}": value for name, value in values.items()}, logger=False)
        if trainer.is_global_zero:
            self._record(trainer, module, pipeline, values, time.monotonic() - started)

    def _pipeline(self, trainer: L.Trainer, module: FlowModule) -> Pipeline:
        return Pipeline(
            network=module.evaluated_network,
            autoencoder=module.autoencoder,
            sampler=self.sampler,
            latent_shape=(module.autoencoder.latent_channels, *self.latent_size),
            device=module.device,
            bf16=trainer.precision == "bf16-mixed",
            batch_size=self.batch_size,
        )

    def _record(
        self,
        trainer: L.Trainer,
        module: FlowModule,
        pipeline: Pipeline,
        values: dict[str, float],
        seconds: float,
    ) -> None:
        assert self.evaluation is not None
        assert self._wanted is not None
        weights = weights_settings(module.record.get("config", {}), "ema" if module.averages else "raw")
        record = EvaluationRecord(
            name=self.evaluation.name,
            step=trainer.global_step,
            weights=weights["name"],
            values=values,
            protocol=protocol_of(self.evaluation, pipeline, self._wanted, weights=weights, seed=self.seed),
            seconds=seconds,
        )
        append_record(self.folder, record)
        print(f"step {record.step}  {record.line} ({seconds:.0f} s)", flush=True)
        for logger in trainer.loggers:
            # Beside what Lightning logs of this step, which it counts from 0.
            logger.log_metrics({f"eval/{k}": v for k, v in values.items()}, step=trainer.global_step - 1)

    def _stop(self, trainer: L.Trainer, started: float) -> Callable[[], bool]:
        """Whether an evaluation is to end early: it takes too long, or a signal has asked the run to stop."""

        def stop() -> bool:
            too_long = self.max_minutes is not None and time.monotonic() - started > 60 * self.max_minutes
            return too_long or _signalled(trainer)

        return stop

    def _give_up(
        self, trainer: L.Trainer, module: FlowModule, evaluation: Evaluation, ranks: Ranks, done: int
    ) -> None:
        """Says what has ended an evaluation early; all ranks agree on it."""
        why = "by a signal"
        if not ranks.any(_signalled(trainer), module.device):
            self._too_long = True
            why = (
                f"by callbacks.evaluate.max_minutes={self.max_minutes:g}, and is not tried again in this run; "
                "more minutes or fewer eval.samples would do"
            )
        if trainer.is_global_zero:
            print(
                f"step {trainer.global_step}  {evaluation.name} was stopped after {done:,} of {evaluation.samples:,} "
                f"pictures, with nothing recorded, {why}",
                flush=True,
            )


def _signalled(trainer: L.Trainer) -> bool:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(c, GracefulStop) and c.stopped_by is not None for c in callbacks)
