"""Checkpoints as Lightning's Trainer asks for them; apart, since what only reads them need not wait for it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rfdit.training.background import BackgroundWriter, snapshot
from rfdit.training.checkpoint import read_raw, write_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """`write_checkpoint` and `read_raw`.

    background: copy the state and write the copy while training goes on; what goes wrong is raised by
        the next save, or at the end of the run.
    """

    def __init__(self, *, background: bool = False) -> None:
        super().__init__()
        self.background = background
        self.writer = BackgroundWriter()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        if not self.background:
            write_checkpoint(checkpoint, Path(path))
            return
        copied = snapshot(checkpoint)
        self.writer.start(lambda: write_checkpoint(copied, Path(path)))

    def teardown(self) -> None:
        self.writer.wait()

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Plain data and tensors only, whatever is asked for: a checkpoint may come from anybody."""
        return read_raw(Path(path))
