"""A callback for tests that records the samples of each step on each rank."""

import json
from pathlib import Path
from typing import Any

import lightning as L

from rfdit.batch import Batch


class Recorder(L.Callback):
    """Appends one JSON line per batch to `folder/rank.jsonl`, at once: a kill loses none."""

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, *_: Any
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"step": trainer.global_step, "positions": batch.positions.tolist(), "keys": batch.keys}
        with (self.folder / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
