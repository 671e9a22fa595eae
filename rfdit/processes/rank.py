"""The rank of this process among those that run together, as their launcher set it in the environment.

The launcher is torchrun, SLURM or `LocalRanks`; a process that was started alone is rank 0 of 1.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

from rfdit.counted import counted
from rfdit.processes.environment import rank_of_environment

T = TypeVar("T")
TIMEOUT = timedelta(days=30)  # for waiting for another process, which may have much more to do


def is_rank_zero() -> bool:
    """True in the one process that prints, and writes the files that all share."""
    return rank_of_environment() == 0


def has_local_rank() -> bool:
    """True where torchrun or `LocalRanks` has started this process as one of several."""
    return "LOCAL_RANK" in os.environ


def local_world_size() -> int | None:
    """The number of processes that torchrun has started on this machine; None without torchrun."""
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    return None if processes is None else int(processes)


@dataclass(frozen=True)
class Process:
    """One of `world_size` processes; local_rank counts those of one machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def current(cls) -> "Process":
        """This process. Processes from a launcher that sets no WORLD_SIZE are independent of each other."""
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        rank = rank_of_environment() if world_size > 1 else 0
        return cls(rank, world_size, int(os.environ.get("LOCAL_RANK", 0)))

    @classmethod
    def of_group(cls) -> "Process":
        """This process in torch's process group; rank 0 of 1 where there is none."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        group = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return cls(*group, cls.current().local_rank)

    def check_devices(self, devices: int) -> None:
        """Raises ValueError where a launcher has started another number of processes than `devices`."""
        if devices not in (1, self.world_size):
            started = counted(self.world_size, "process", "processes")
            raise ValueError(
                f"devices={devices}, but a launcher has already started {started}; "
                f"let it start {devices}, as torchrun --nproc-per-node={devices} sample.py does"
            )

    def device(self, kind: torch.device) -> torch.device:
        """The device of this process: a GPU of its own; raises ValueError if there are too few of them."""
        if kind.type != "cuda":
            return kind
        if self.local_rank >= (gpus := torch.cuda.device_count()):
            raise ValueError(
                f"each of {self.world_size} processes needs a GPU of its own, and this machine has {gpus}; lower "
                "devices, or torchrun's --nproc-per-node"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def group(self) -> Iterator[None]:
        """A context in which the processes can wait for each other."""
        if self.world_size == 1:
            yield
            return
        torch.distributed.init_process_group(
            "gloo", rank=self.rank, world_size=self.world_size, timeout=TIMEOUT
        )
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()

    def any(self, flag: bool, device: torch.device) -> bool:
        """True on all processes if the flag is set on one; inside of a group that reduces tensors of this device."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor(int(flag), device=device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return bool(flags)

    def joined(self, items: list[T]) -> list[T]:
        """The items of all processes, by rank, once all are here; inside of `group` only."""
        if self.world_size == 1:
            return items
        lists: list[list[T]] = [[]] * self.world_size
        torch.distributed.all_gather_object(lists, items)
        return [item for each in lists for item in each]

    def barrier(self) -> None:
        """Waits until all processes are here; inside of `group` only."""
        if self.world_size > 1:
            torch.distributed.barrier()
