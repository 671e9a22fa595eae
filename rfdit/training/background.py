"""Writing while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class BackgroundWriter:
    """Runs one job at a time in a thread; what a job raises is raised by the next call here."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Waits for the job before, then starts this one."""
        self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job = self._thread.submit(job)

    def wait(self) -> None:
        """Returns when nothing is being written."""
        job, self._job = self._job, None
        if job is not None:
            job.result()


def snapshot(tree: Any) -> Any:
    """Nested containers with a copy of each tensor on the CPU, which training does not change any more."""
    copies = tree_map_only(
        Tensor, lambda tensor: tensor.detach().to("cpu", non_blocking=True, copy=True), tree
    )
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copies
