"""Lightning's Trainer, made from the settings of the group `trainer`."""

import os
import re
from collections.abc import Sequence
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import Strategy

from rfdit.device import check_devices, pick_device, pick_precision
from rfdit.limits import Count, Limit, Positive
from rfdit.processes.rank import has_local_rank
from rfdit.training.checkpoint_io import AtomicCheckpointIO
from rfdit.training.time_limit import TimeLimit


def _is_duration(value: object) -> bool:
    # Six digits: a number of days that a timedelta holds.
    form = re.fullmatch(r"(\d{1,6}:)?\d\d:\d\d:\d\d", value) if isinstance(value, str) else None
    return form is not None and any(map(int, form[0].split(":")))


Steps = Annotated[int, Limit("at least 1, or -1 for a run without end", lambda n: n == -1 or n >= 1)]
# Accepts numbers as well, so that 12 is refused with the message of the limit.
Duration = Annotated[
    str | float,
    Limit(
        "[days:]hours:minutes:seconds and more than 0, such as 12:00:00 or 00:12:00:00 for twelve hours",
        _is_duration,
    ),
]


def seconds_of(duration: str) -> int:
    """The seconds of a duration such as 00:04:00 or 00:00:04:00."""
    days, hours, minutes, seconds = [0, *map(int, duration.split(":"))][-4:]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class LastRow(L.Callback):
    """Gives the last step a row in the log as well, so that a run shorter than the interval has one."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == trainer.max_steps:
            trainer.log_every_n_steps = 1  # type: ignore[attr-defined]


def make_trainer(
    *,
    max_steps: Steps,
    max_time: Duration | None = None,
    budget: Duration | None = None,
    budget_min_steps: Count | None = None,
    budget_max_steps: Count | None = None,
    accelerator: str = "auto",
    devices: Count = 1,
    num_nodes: Count = 1,
    precision: str = "auto",
    strategy: Strategy | None = None,
    gradient_clip_val: Positive | None = None,
    accumulate_grad_batches: Count = 1,
    val_every_n_steps: Count | None = None,
    limit_val_batches: Count | None = None,
    log_every_n_steps: Count = 50,
    background_checkpoints: bool = False,
    detect_anomaly: bool = False,
    run_dir: str,
    callbacks: Sequence[L.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> L.Trainer:
    """A Trainer for an endless stream: the run is counted in steps, there are no epochs.

    max_time: the limit of this start, after which the run ends with its last grid and evaluation.
    budget: None by the time a Trainer is made; `rfdit.callbacks.budget` makes `max_steps` of it,
        between budget_min_steps and budget_max_steps.
    detect_anomaly: stop at the first operation whose gradient is not a number, and name its line.
    background_checkpoints: write checkpoints while training goes on, as `AtomicCheckpointIO` says.
    Raises ValueError for devices that do not exist, or that do not suit the strategy.
    """
    assert budget is None, "a budget becomes max_steps before a Trainer is made"
    device = pick_device(accelerator)
    check_devices(devices, num_nodes, strategy)
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"trainer.devices={devices} asks for more GPUs than the {torch.cuda.device_count()} here"
        )
    return L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator=device.type,
        devices=devices,
        num_nodes=num_nodes,
        precision=pick_precision(precision, device),  # type: ignore[arg-type]
        strategy=strategy or "auto",
        gradient_clip_val=gradient_clip_val,
        accumulate_grad_batches=accumulate_grad_batches,
        val_check_interval=val_every_n_steps and val_every_n_steps * accumulate_grad_batches,
        check_val_every_n_epoch=None,
        limit_val_batches=0 if val_every_n_steps is None else limit_val_batches,
        num_sanity_val_steps=0,
        detect_anomaly=detect_anomaly,
        log_every_n_steps=log_every_n_steps,
        default_root_dir=run_dir,
        # First, since the others ask these whether a step is the last, or is logged.
        callbacks=[
            LastRow(),
            *([] if max_time is None else [TimeLimit(seconds_of(str(max_time)))]),
            *callbacks,
        ],
        logger=list(loggers),
        plugins=[AtomicCheckpointIO(background=background_checkpoints), *_environment()],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )


def _environment() -> list[ClusterEnvironment]:
    """Lightning's environment where it must not be the one that Lightning would pick.

    That is in ranks that `LocalRanks` started inside a SLURM task, and in SLURM's own: Lightning would answer
    SIGUSR1 in the middle of a step, with a checkpoint of another name.
    """
    if TorchElasticEnvironment.detect():
        return []
    if has_local_rank():
        return [LightningEnvironment()]
    if "SLURM_NTASKS" not in os.environ or not SLURMEnvironment.detect():
        return []
    if int(os.environ["SLURM_NTASKS"]) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError(
            "SLURM's ranks are counted by node here; give --ntasks-per-node in place of --ntasks"
        )
    return [SLURMEnvironment(auto_requeue=False)]
