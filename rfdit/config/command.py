"""Commands: functions of a configuration as programs, and the command lines of their other ranks."""

import sys
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from rfdit.config.build import CONFIG_DIR, register
from rfdit.config.errors import explain_errors
from rfdit.config.overrides import understood
from rfdit.config.schemas import named_settings, text_settings
from rfdit.processes.quiet import quiet_others
from rfdit.storage.folders import unusable


class _FolderError(ValueError):
    """A folder of which Hydra cannot make use."""


def command(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorator that turns a function of `conf/NAME.yaml` into the program that composes it from `sys.argv`.

    A ValueError or OSError of the function, and any error of composing, ends the program with one sentence
    and exit code 1.
    """

    def decorate(run: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @wraps(run)
        def job(cfg: DictConfig) -> Any:
            with explain_errors(name, ValueError, OSError):
                return run(cfg)

        compose_and_run = hydra.main(config_path=str(CONFIG_DIR), config_name=name, version_base="1.3")(job)

        def program() -> None:
            quiet_others()
            register()
            arguments = sys.argv[1:]
            with explain_errors(name, ValueError):
                sweep = not {"-m", "--multirun"}.isdisjoint(arguments)
                sys.argv[1:] = understood(
                    arguments,
                    texts=text_settings(name),
                    groups=CONFIG_DIR,
                    sweep=sweep,
                    named=named_settings(name),
                )
            with explain_errors(name, _FolderError):
                try:
                    compose_and_run()
                except OSError as error:  # of Hydra's making the folder; `job` explains those of the function
                    if isinstance(error, HydraException):
                        raise
                    setting = "run_dir" if name == "train" else "out"
                    raise _FolderError(unusable(error.filename, error, setting=setting)) from None

        program.__doc__ = run.__doc__
        return program

    return decorate


def rank_command(command: str, *settings: str, without: Collection[str] = ()) -> list[str]:
    """The arguments with which `rfdit COMMAND` starts another rank with the settings of this job.

    settings: overrides that are added. without: the names of overrides of this job that are left out.
    """
    job = HydraConfig.get()
    sources = job.runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    main = next(source for source in sources if source.provider == "main")  # conf/, or --config-path
    config_path = main.path if main.schema == "file" else f"{main.schema}://{main.path}"
    # As they were typed, so that an interpolation refers to the other rank's settings.
    typed: Any = OmegaConf.to_container(job.overrides, resolve=False)
    return [
        *(sys.executable, "-m", "rfdit", command),
        *("--config-path", config_path, "--config-name", str(job.job.config_name)),
        *(argument for folder in folders for argument in ("--config-dir", folder)),
        *(override for override in typed["task"] if override.partition("=")[0] not in without),
        *(override for override in typed["hydra"] if override.startswith("hydra.searchpath=")),
        "hydra.mode=RUN",
        *settings,
    ]
