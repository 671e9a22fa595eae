"""How a run is spread over devices."""

import os
from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, Strategy

STARTED_BY_LAUNCHER = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"}


def single() -> Strategy | None:
    """One device."""
    return None


def ddp(*, timeout_minutes: float = 30) -> Strategy:
    """A replica of the network on every device, gradients averaged.

    timeout_minutes: how long ranks wait for each other before the run fails.
    Raises ValueError unless torchrun or a scheduler started this process: what Lightning starts
    itself runs a Hydra sweep once per rank.
    """
    if not STARTED_BY_LAUNCHER & os.environ.keys():
        raise ValueError(
            "strategy=ddp is started by torchrun: write torchrun --nproc-per-node=N train.py strategy=ddp "
            "trainer.devices=N ..."
        )
    return DDPStrategy(gradient_as_bucket_view=True, timeout=timedelta(minutes=timeout_minutes))
