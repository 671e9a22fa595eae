"""How a run is spread over devices."""

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, Strategy


def single() -> str:
    """One device: Lightning's own choice for it."""
    return "auto"


def ddp(*, timeout_minutes: float = 30) -> Strategy:
    """A replica of the network on every device, gradients averaged.

    timeout_minutes: how long ranks wait for each other before the run fails.
    """
    return DDPStrategy(gradient_as_bucket_view=True, timeout=timedelta(minutes=timeout_minutes))
