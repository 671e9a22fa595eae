"""Pictures during training, from fixed noise, so that successive grids can be compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from rfdit.batch import Batch
from rfdit.callbacks.steps import OptimizerSteps
from rfdit.grid import captioned_grid
from rfdit.sampler import Pipeline, Sampler
from rfdit.training.module import FlowModule


class SampleGrid(L.Callback):
    """Samples from the EMA weights every N steps and writes a captioned PNG.

    folder: where `step_00001000.png` goes; loggers that take images get it as well.
    inputs: captions or class labels; None takes the first training batch's.
    count: how many of them.
    """

    def __init__(
        self,
        *,
        folder: str,
        sampler: Sampler,
        every_n_steps: int = 1000,
        inputs: Sequence[str] | Sequence[int] | None = None,
        count: int = 16,
        seed: int = 0,
    ) -> None:
        self.folder, self.sampler, self.every_n_steps = Path(folder), sampler, every_n_steps
        self.inputs = None if inputs is None else list(inputs)[:count]
        self.count, self.seed = count, seed
        self._steps = OptimizerSteps()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps.start(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FlowModule)
        if self.inputs is None:
            first = pl_module.network.conditioner.inputs(batch)[: self.count]
            # Plain numbers and strings, since they are saved with the callback's state.
            self.inputs = first.tolist() if isinstance(first, Tensor) else list(first)
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if self._steps(trainer) and due and trainer.is_global_zero:
            self._write(trainer, pl_module, self.inputs, self._latent_shape(pl_module, batch))

    @staticmethod
    def _latent_shape(module: FlowModule, batch: Batch) -> tuple[int, int, int]:
        height, width = (n // module.autoencoder.downsampling for n in batch.images.shape[-2:])
        return module.autoencoder.latent_channels, height, width

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
        sheet = captioned_grid(pipeline(inputs, seed=self.seed), [str(caption) for caption in inputs])
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet.save(self.folder / f"step_{trainer.global_step:08d}.png")
        for logger in trainer.loggers:
            log_image(logger, sheet, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"inputs": self.inputs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inputs = self.inputs or state_dict["inputs"]


def log_image(logger: Logger, image: Image.Image, step: int) -> None:
    """Shows a picture where the logger can."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image("samples", np.asarray(image), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image("samples", [image], step=step)
