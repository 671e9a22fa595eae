"""How a run is spread over devices."""

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, Strategy

from rfdit.training.fully_sharded import FullySharded


def single() -> Strategy | None:
    """One device."""
    return None


def ddp(*, timeout_minutes: float = 30) -> Strategy:
    """A replica of the network on every device, gradients averaged.

    timeout_minutes: how long ranks wait for each other before the run fails.
    """
    return DDPStrategy(gradient_as_bucket_view=True, timeout=timedelta(minutes=timeout_minutes))


def fsdp(
    *,
    replicas: int = 1,
    reshard_after_forward: bool = True,
    gather_bf16: bool = True,
    meta_init: bool = False,
    timeout_minutes: float = 30,
) -> Strategy:
    """Weights, gradients, optimiser state and averages in parts, one on every device (FSDP2).

    Settings as of `FullySharded`; timeout_minutes as of `ddp`. Raises ValueError for no replicas.
    """
    if replicas < 1:
        raise ValueError(f"strategy.replicas={replicas} must be at least 1")
    return FullySharded(
        replicas=replicas,
        reshard_after_forward=reshard_after_forward,
        gather_bf16=gather_bf16,
        meta_init=meta_init,
        timeout=timedelta(minutes=timeout_minutes),
    )
