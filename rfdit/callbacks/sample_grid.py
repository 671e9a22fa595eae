"""Samples images during training from fixed noise, so that successive grids can be compared."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rfdit.batch import Batch, Condition
from rfdit.callbacks.capabilities import at_last_step, flow_module
from rfdit.conditioning import Conditioner, WithMicro
from rfdit.image_grid import captioned_grid, write_image
from rfdit.limits import Count, Seed
from rfdit.sampler import Sampler
from rfdit.sampler.pipeline import NotFiniteError
from rfdit.training.loggers import show_image
from rfdit.training.module import FlowModule


class SampleGrid(L.Callback):
    """Samples from the EMA weights every N steps and writes a captioned PNG.

    folder: where `step_00001000.png` and so on are written; loggers that take images get them as well.
    inputs: captions or class labels; None takes the first training batch's.
    count: the number of images.

    Below an image stands its caption, or its label with the class's name if the first batch has it.
    """

    def __init__(
        self,
        *,
        folder: str,
        sampler: Sampler,
        every_n_steps: Count = 1000,
        inputs: Sequence[str] | Sequence[int] | None = None,
        count: Count = 16,
        seed: Seed = 0,
    ) -> None:
        self.folder, self.sampler, self.every_n_steps = Path(folder), sampler, every_n_steps
        self.inputs = None if inputs is None else list(inputs)[:count]
        self.count, self.seed = count, seed
        self.captions: list[str] | None = None

    def check(self, trainer: L.Trainer, module: FlowModule, first_step: int) -> None:
        """Raises ValueError for a sampler that does not fit the model."""
        self.sampler.check(module.network.backbone)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        module = flow_module(pl_module)
        # Those of rank 0, and only once, since reading labels from a GPU waits for it.
        if self.inputs is None:
            self.inputs = trainer.strategy.broadcast(
                first_inputs(module.network.conditioner, batch, self.count)
            )
        if self.captions is None:
            self.captions = trainer.strategy.broadcast(captions_of(self.inputs, batch))
        due = trainer.global_step % self.every_n_steps == 0 or at_last_step(trainer)
        if module.stepped and due and (trainer.is_global_zero or module.sharded):
            shape = module.latent_shape(batch)
            # Ranks that hold parts must take the same number of steps, which an adaptive solver decides.
            shape = trainer.strategy.broadcast(shape) if module.sharded else shape
            self._write(trainer, module, self.inputs, shape)

    def _write(
        self, trainer: L.Trainer, module: FlowModule, inputs: list[Any], latent_shape: tuple[int, int, int]
    ) -> None:
        assert self.captions is not None
        started = time.monotonic()
        try:
            images = module.pipeline(self.sampler, latent_shape)(inputs, seed=self.seed)
        except NotFiniteError as error:  # on all ranks that hold parts; a grid is not worth a run
            rank_zero_warn(f"step {trainer.global_step} has no grid: {error}")
            return
        if not trainer.is_global_zero:  # it took part because it holds parts of the weights
            return
        sheet = captioned_grid(images, self.captions)
        file = self.folder / f"step_{trainer.global_step:08d}.png"
        write_image(file, sheet)
        print(f"step {trainer.global_step}  grid: {file} ({time.monotonic() - started:.1f} s)", flush=True)
        for logger in trainer.loggers:
            show_image(logger, "samples", sheet, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "captions": self.captions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.inputs is None or self.inputs == state_dict["inputs"]:
            self.inputs, self.captions = state_dict["inputs"], state_dict["captions"]


def captions_of(inputs: Sequence[object], batch: Batch) -> list[str]:
    """The texts below the images of these inputs: captions as they are, and labels as "207: golden retriever".

    A class that does not occur in the batch together with its name is its number alone.
    """
    names: dict[object, str] = {}
    if batch.labels is not None and batch.captions is not None:
        names = dict(zip(batch.labels.tolist(), batch.captions))
    return [f"{given}: {names[given]}" if given in names else str(given) for given in inputs]


def first_inputs(conditioner: Conditioner, batch: Batch, count: int) -> list[Any]:
    """The first captions or labels of a batch, as plain data that can be saved with the callback's state."""
    # Captions even where the batch brings their features: they stand below the images.
    inputs = conditioner.inputs(replace(batch, condition=None))
    if isinstance(inputs, WithMicro):  # images are sampled with the defaults
        inputs = inputs.inputs
    assert not isinstance(inputs, Condition)
    first = inputs[:count]
    return first.tolist() if isinstance(first, Tensor) else list(first)
