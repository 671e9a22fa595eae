"""Pictures during training, from fixed noise, so that successive grids can be compared."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from rfdit.batch import Batch, Condition
from rfdit.callbacks.steps import OptimizerSteps
from rfdit.conditioning import Conditioner
from rfdit.grid import captioned_grid
from rfdit.limits import Count
from rfdit.sampler import Pipeline, Sampler
from rfdit.training.module import FlowModule


class SampleGrid(L.Callback):
    """Samples from the EMA weights every N steps and writes a captioned PNG.

    folder: where `step_00001000.png` goes; loggers that take images get it as well.
    inputs: captions or class labels; None takes the first training batch's.
    count: how many of them.

    Below a picture is its caption, or its label with the class's name if the first batch has it.
    """

    def __init__(
        self,
        *,
        folder: str,
        sampler: Sampler,
        every_n_steps: Count = 1000,
        inputs: Sequence[str] | Sequence[int] | None = None,
        count: Count = 16,
        seed: int = 0,
    ) -> None:
        self.folder, self.sampler, self.every_n_steps = Path(folder), sampler, every_n_steps
        self.inputs = None if inputs is None else list(inputs)[:count]
        self.count, self.seed = count, seed
        self.captions: list[str] | None = None
        self._steps = OptimizerSteps()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps.start(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FlowModule)
        # The first rank's, once: labels on a GPU have to be waited for.
        if self.inputs is None:
            self.inputs = trainer.strategy.broadcast(
                first_inputs(pl_module.network.conditioner, batch, self.count)
            )
        if self.captions is None:
            self.captions = trainer.strategy.broadcast(captions_of(self.inputs, batch))
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if self._steps(trainer) and due and (trainer.is_global_zero or pl_module.sharded):
            shape = pl_module.latent_shape(batch)
            # Ranks that hold parts must take the same number of steps, which an adaptive solver decides.
            shape = trainer.strategy.broadcast(shape) if pl_module.sharded else shape
            self._write(trainer, pl_module, self.inputs, shape)

    def _write(
        self, trainer: L.Trainer, module: FlowModule, inputs: list[Any], latent_shape: tuple[int, int, int]
    ) -> None:
        pipeline = Pipeline(
            network=module.evaluated_network,
            autoencoder=module.autoencoder,
            sampler=self.sampler,
            latent_shape=latent_shape,
            device=module.device,
            bf16=trainer.precision == "bf16-mixed",
        )
        assert self.captions is not None
        pictures = pipeline(inputs, seed=self.seed)
        if not trainer.is_global_zero:  # it was here to bring its parts of the weights
            return
        sheet = captioned_grid(pictures, self.captions)
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet.save(self.folder / f"step_{trainer.global_step:08d}.png")
        for logger in trainer.loggers:
            log_image(logger, sheet, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "captions": self.captions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.inputs is None or self.inputs == state_dict["inputs"]:
            self.inputs, self.captions = state_dict["inputs"], state_dict.get("captions")


def captions_of(inputs: Sequence[object], batch: Batch) -> list[str]:
    """What is written below the pictures of these inputs: captions as they are, "207: golden retriever",
    or the bare number of a class that does not occur in the batch together with its name.
    """
    names: dict[object, str] = {}
    if batch.labels is not None and batch.captions is not None:
        names = dict(zip(batch.labels.tolist(), batch.captions))
    return [f"{given}: {names[given]}" if given in names else str(given) for given in inputs]


def first_inputs(conditioner: Conditioner, batch: Batch, count: int) -> list[Any]:
    """The first captions or labels of a batch; plain, since they are saved with the callback's state."""
    # Captions also where the batch brings their features: they are what is written under a picture.
    inputs = conditioner.inputs(replace(batch, condition=None))
    assert not isinstance(inputs, Condition)
    first = inputs[:count]
    return first.tolist() if isinstance(first, Tensor) else list(first)


def log_image(logger: Logger, image: Image.Image, step: int) -> None:
    """Shows a picture where the logger can."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image("samples", np.asarray(image), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image("samples", [image], step=step)
