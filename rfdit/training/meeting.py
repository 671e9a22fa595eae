"""How ranks that a launcher has placed find each other again at every point of a sweep."""

import os
from datetime import timedelta

import lightning as L
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous

_store: Store | None = None  # lives as long as the process: points come and go


def meet(trainer: L.Trainer, *, point: int, timeout: timedelta) -> None:
    """Initialises the process group of a sweep's point, in place of the strategy.

    Ranks leave a point at different moments. Were they to meet at one address every time, the first might
    find what is left there of the point before, and wait for ever. So they meet at the same store under
    the number of the point, and one that is elsewhere, since it failed there, is not mixed up with them.
    Nothing happens for a strategy of one device.
    """
    global _store
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None or dist.is_initialized():
        return
    rank, size = environment.global_rank(), environment.world_size()
    if _store is None:
        address = {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
        os.environ |= address
        _store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    backend = "nccl" if trainer.strategy.root_device.type == "cuda" else "gloo"
    store = PrefixStore(f"point {point}", _store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
