"""Which of the processes that sample together this one is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

LONGEST = timedelta(days=30)  # that processes wait for each other


@dataclass(frozen=True)
class Place:
    """One of `world` processes, with a device of its own."""

    rank: int
    world: int

    @classmethod
    def here(cls, devices: int) -> "Place":
        """As the launcher says, which may be ours or torchrun.

        Raises ValueError where a launcher has started another number than `devices` asks for.
        """
        world = int(os.environ.get("WORLD_SIZE", 1))
        if devices not in (1, world):
            raise ValueError(
                f"devices={devices}, and another launcher has started {world} process(es) of this; let it start "
                f"{devices}, as torchrun --nproc-per-node={devices} sample.py does"
            )
        return cls(int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))), world)

    def device(self, kind: torch.device) -> torch.device:
        """This process's device; raises ValueError if there are fewer GPUs than processes."""
        if kind.type != "cuda":
            return kind
        local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= there:
            raise ValueError(f"devices={self.world} asks for more GPUs than the {there} here")
        torch.cuda.set_device(local)
        return torch.device("cuda", local)

    @contextmanager
    def together(self) -> Iterator[None]:
        """While this lasts, processes can wait for each other."""
        if self.world == 1:
            yield
            return
        torch.distributed.init_process_group("gloo", rank=self.rank, world_size=self.world, timeout=LONGEST)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()
