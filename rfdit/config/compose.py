"""Configurations composed from Python, for notebooks and programs: `rfdit.compose`."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rfdit.config.build import CONFIG_DIR, register
from rfdit.config.errors import sentence
from rfdit.config.overrides import quoted, understood
from rfdit.config.schemas import SCHEMAS, named_settings, text_settings


def compose(
    command: str = "train", overrides: Sequence[str] = (), *, config_dir: str | Path | None = None
) -> DictConfig:
    """The configuration of a command with these overrides, as the command line composes it.

    Its settings can be read and set as attributes: `config.trainer.max_steps = 100`.

    >>> config = rfdit.compose("train", ["size=s", "data=folder", "data.shards=images"])
    >>> run = rfdit.train(config)

    command: `train`, or another one of `rfdit --help`. overrides: as they are typed after it.
    config_dir: a folder with options of your own, as for `--config-dir`.
    Raises ValueError with one sentence for a command, an option or a setting that does not exist.
    """
    if command not in SCHEMAS:
        raise ValueError(f"command={command} does not exist; choose from {', '.join(SCHEMAS)}")
    register()
    typed = understood(
        overrides, texts=text_settings(command), groups=CONFIG_DIR, named=named_settings(command)
    )
    if config_dir is not None:
        folder = Path(config_dir).expanduser().absolute()
        if not folder.is_dir():
            raise ValueError(f"config_dir={config_dir} is not a folder")
        typed.append(f"hydra.searchpath=[{quoted(f'file://{folder}')}]")
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra_compose(command, overrides=typed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(sentence(error, command)) from None
