"""From the `trainer` settings to Lightning's Trainer."""

import os
import re
from collections.abc import Sequence
from typing import Annotated

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import Strategy

from rfdit.limits import Count, Limit, Positive
from rfdit.training.checkpoint_io import AtomicCheckpointIO
from rfdit.training.device import check_devices, pick_device, pick_precision


def _is_duration(value: object) -> bool:
    # Six digits: a number of days that a timedelta holds.
    form = re.fullmatch(r"\d{1,6}(:\d\d){3}", value) if isinstance(value, str) else None
    return form is not None and any(map(int, form[0].split(":")))


Steps = Annotated[int, Limit("at least 1, or -1 for a run without end", lambda n: n == -1 or n >= 1)]
# Numbers as well, so that whoever writes 12 is told what is wanted.
Duration = Annotated[
    str | float,
    Limit("days:hours:minutes:seconds and more than 0, such as 00:12:00:00 for twelve hours", _is_duration),
]


def make_trainer(
    *,
    max_steps: Steps,
    max_time: Duration | None = None,
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
    run_dir: str,
    callbacks: Sequence[L.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> L.Trainer:
    """A Trainer for an endless stream: the run is counted in steps, there are no epochs.

    background_checkpoints: write checkpoints while training goes on; as of `AtomicCheckpointIO`.
    Raises ValueError for devices that are asked for and are not there, or that the strategy does not suit.
    """
    device = pick_device(accelerator)
    check_devices(devices, num_nodes, strategy)
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"trainer.devices={devices} asks for more GPUs than the {torch.cuda.device_count()} here"
        )
    return L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        max_time=None if max_time is None else str(max_time),
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
        log_every_n_steps=log_every_n_steps,
        default_root_dir=run_dir,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=[AtomicCheckpointIO(background=background_checkpoints), *_environment()],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )


def _environment() -> list[ClusterEnvironment]:
    """How ranks find each other, where Lightning would guess otherwise: ours may run in a task of SLURM's."""
    ours = "LOCAL_RANK" in os.environ and not TorchElasticEnvironment.detect()
    return [LightningEnvironment()] if ours else []
