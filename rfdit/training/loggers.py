"""Loggers of others: one identity of a run over all its starts, and what Lightning does not log to all alike."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from rfdit.processes.rank import is_rank_zero
from rfdit.storage.checked import read_checked_json, write_checked_json

IDENTITIES = "loggers.json"  # in a run folder


def identity(folder: Path, logger: str) -> str | None:
    """The identity under which a logger knows the run in a folder; None for a new one."""
    file = folder / IDENTITIES
    return str(read_checked_json(file).get(logger) or "") or None if file.exists() else None


def keep_identity(folder: Path, logger: str, number: str) -> None:
    """Record the identity of a run for its later starts."""
    file = folder / IDENTITIES
    known = read_checked_json(file) if file.exists() else {}
    if known.get(logger) != number:
        write_checked_json(file, {**known, logger: number})


def wandb_logger(
    *,
    folder: str,
    project: str,
    name: str,
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    offline: bool = False,
) -> Logger:
    """Weights & Biases: a resumed run goes on in the run of its first start.

    folder: that of the run, which also holds the files of W&B. offline: write them there only.
    """
    number = identity(Path(folder), "wandb")
    if number is None and is_rank_zero():
        number = secrets.token_hex(4)
        keep_identity(Path(folder), "wandb", number)
    return WandbLogger(
        project=project,
        name=name,
        entity=entity,
        group=group,
        tags=list(tags),
        offline=offline,
        save_dir=folder,
        id=number,
        resume="allow",
    )


def mlflow_logger(*, folder: str, experiment: str, name: str, tracking_uri: str | None = None) -> Logger:
    """MLflow: a resumed run goes on in the run of its first start. folder: that of the run."""
    # MLflow refuses its store of files without this, and the light client `mlflow-skinny` has no other.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    settings: dict[str, Any] = {} if tracking_uri is None else {"tracking_uri": tracking_uri}
    return MLFlowLogger(
        experiment_name=experiment, run_name=name, run_id=identity(Path(folder), "mlflow"), **settings
    )


def show_config(logger: Logger, config: dict[str, Any], *, folder: Path, step: int) -> None:
    """Log the resolved configuration, as of the start at a step, and keep the run's identity."""
    text = yaml.safe_dump(config, sort_keys=False)
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("config", f"```\n{text}\n```", step)
    elif isinstance(logger, MLFlowLogger):
        number = logger.run_id
        assert number is not None
        if identity(folder, "mlflow") is None:  # MLflow takes each parameter once
            logger.log_hyperparams(config)
            keep_identity(folder, "mlflow", number)
        logger.experiment.log_text(number, text, f"config_{step:08d}.yaml")
    else:
        logger.log_hyperparams(config)


def show_image(logger: Logger, name: str, image: Image.Image, step: int) -> None:
    """Log an image, if the logger can show one."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [image], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, image, key=name, step=step)
