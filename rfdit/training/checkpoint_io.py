"""The plugin through which Lightning's Trainer writes and reads checkpoints."""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from rfdit.checkpoint.kept import Keeping
from rfdit.checkpoint.saved_run import read_raw, write_checkpoint
from rfdit.processes.pools import result_of
from rfdit.storage.untrusted import first_line

MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}  # which have their parameter's shape


class BackgroundWriter:
    """A thread that runs one job at a time; the exception of a job is raised by the next call."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Wait for the previous job, then start this one."""
        self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job = self._thread.submit(job)

    def wait(self) -> None:
        """Wait until nothing is being written."""
        job, self._job = self._job, None
        if job is not None:
            result_of(job)


@runtime_checkable
class WritesInBackground(Protocol):
    """A plugin that can write while training goes on. background: it does; writer: its thread."""

    background: bool
    writer: BackgroundWriter


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes with `write_checkpoint` and reads with `read_raw`.

    background: copy the state and write the copy while training goes on; an error is raised by the next
        save, or at the end of the run.

    `storage_options` is a `Keeping`, or None.
    """

    def __init__(self, *, background: bool = False) -> None:
        super().__init__()
        self.background = background
        self.writer = BackgroundWriter()

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Keeping | None = None,
    ) -> None:
        def write(state: dict[str, Any]) -> None:
            write_checkpoint(state, Path(path))
            if storage_options is not None:
                storage_options.after_writing(Path(path))

        if not self.background:
            write(checkpoint)
            return
        copied = snapshot(checkpoint)
        self.writer.start(lambda: write(copied))

    def teardown(self) -> None:
        self.writer.wait()

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Loads plain data and tensors only, whatever `weights_only` says: a checkpoint may come from anyone."""
        return read_raw(Path(path))


@contextmanager
def restoring(trainer: L.Trainer, path: Path | None) -> Iterator[None]:
    """Context of `fit`: any error while the state of a checkpoint is restored becomes a ValueError that names it."""
    try:
        yield
    except Exception as error:
        unfinished = path is not None and trainer._checkpoint_connector._loaded_checkpoint
        told = isinstance(error, OSError) or (
            isinstance(error, ValueError) and re.match(r"[\w.]+=", str(error))
        )
        if told or not unfinished:
            raise
        raise ValueError(
            f"ckpt={path} has another structure than the state of this run ({first_line(error)}); take another "
            "checkpoint"
        ) from error


def check_restored(optimizer: Optimizer) -> None:
    """Raises ValueError for a moment of another shape than its parameter, which PyTorch does not compare."""
    for parameter, state in optimizer.state.items():
        for name in MOMENTS & state.keys():
            shape = getattr(state[name], "shape", None)
            if shape != parameter.shape:
                raise ValueError(
                    f"its {name} of the shape {shape} is that of a parameter of {parameter.shape}"
                )


def snapshot(tree: Any) -> Any:
    """Nested containers with a copy of each tensor on the CPU, which training no longer changes."""
    copies = tree_map_only(
        Tensor, lambda tensor: tensor.detach().to("cpu", non_blocking=True, copy=True), tree
    )
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return copies
