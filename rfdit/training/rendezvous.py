"""The rendezvous of ranks at every point of a sweep, where a launcher has started them."""

import os

import lightning as L
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous
from torch.distributed.constants import default_pg_timeout

_store: Store | None = None  # lives as long as the process: points come and go


def join_process_group(trainer: L.Trainer, *, point: int) -> None:
    """Initialise the process group of a sweep's point, in place of the strategy.

    Ranks leave a point at different moments. With a new store at the same address each time, the first rank
    could find the remains of the previous point and wait for ever. All points therefore share one store, in
    which each has a prefix of its own, so that a rank that failed and is at another point is not mixed up
    with the rest. Does nothing for a strategy of one device.
    """
    global _store
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None or dist.is_initialized():
        return
    # Lightning has no public name for it.
    timeout = getattr(trainer.strategy, "_timeout", None) or default_pg_timeout
    rank, size = environment.global_rank(), environment.world_size()
    if _store is None:
        address = {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
        os.environ |= address
        _store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    backend = "nccl" if trainer.strategy.root_device.type == "cuda" else "gloo"
    store = PrefixStore(f"point {point}", _store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
