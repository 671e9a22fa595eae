"""Gives the configuration of the run to its loggers."""

from pathlib import Path

import lightning as L

from rfdit.callbacks.capabilities import flow_module
from rfdit.training.loggers import show_config


class LogConfig(L.Callback):
    """Logs the resolved configuration at every start, once the data is open. folder: that of the run."""

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                config = flow_module(pl_module).record["config"]
                show_config(logger, config, folder=self.folder, step=trainer.global_step)
