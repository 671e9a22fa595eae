"""How a run is spread over devices."""

from datetime import timedelta
from typing import Annotated

from lightning.pytorch.strategies import DDPStrategy, Strategy

from rfdit.limits import Count, Limit
from rfdit.training.fully_sharded import FullySharded

YEAR = 365 * 24 * 60  # in minutes; far longer ones overflow in torch
Minutes = Annotated[float, Limit(f"more than 0 and at most {YEAR}, a year", lambda n: 0 < n <= YEAR)]


def single() -> Strategy | None:
    """One device."""
    return None


def ddp(*, timeout_minutes: Minutes = 30) -> Strategy:
    """A replica of the network on every device, gradients averaged.

    timeout_minutes: how long ranks wait for each other before the run fails.
    """
    return DDPStrategy(gradient_as_bucket_view=True, timeout=timedelta(minutes=timeout_minutes))


def fsdp(
    *,
    replicas: Count = 1,
    reshard_after_forward: bool = True,
    gather_bf16: bool = True,
    meta_init: bool = False,
    timeout_minutes: Minutes = 30,
) -> Strategy:
    """Weights, gradients, optimiser state and averages in parts, one on every device (FSDP2).

    Settings as of `FullySharded`; timeout_minutes as of `ddp`.
    """
    return FullySharded(
        replicas=replicas,
        reshard_after_forward=reshard_after_forward,
        gather_bf16=gather_bf16,
        meta_init=meta_init,
        timeout=timedelta(minutes=timeout_minutes),
    )
