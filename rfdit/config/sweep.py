"""Sweeps and the names of their points, and the command that resumes one."""

import hashlib
import shlex
import sys
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from rfdit.config.overrides import setting, typed_program

LONGEST_NAME = 200  # length of a folder's name in bytes; file systems allow 255


class SweepFolder(Callback):  # type: ignore[misc]
    """Hydra's callback at the start of a sweep: names points by what is swept, prints how to resume the sweep."""

    started: ClassVar[Path | None] = None  # the folder of the sweep that this process has started

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        SweepFolder.started = folder
        swept, fixed = swept_and_fixed(config)
        with open_dict(config):
            # Without swept settings, the only point is named by all settings that were given.
            unnamed = sorted(fixed) if swept else ["run_dir"]
            keys = ",".join(f"'{key}'" for key in unnamed)
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
            sweeper = config.hydra.sweeper
            typed = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
            assert isinstance(typed, list)
            if "max_failure_rate" in sweeper and not any("max_failure_rate" in str(o) for o in typed):
                sweeper.max_failure_rate = 1.0  # a trial that fails does not stop the others
        print(f"sweep in {folder}; when interrupted, resume with: {resume_command(folder)}", flush=True)


def swept_and_fixed(config: DictConfig) -> tuple[set[str], set[str]]:
    """The names of the settings that a sweep varies, and of those that all its points share."""
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    params = config.hydra.sweeper.get("params") or {}
    overrides = OverridesParser.create().parse_overrides(typed)
    swept = {o.key_or_group for o in overrides if o.is_sweep_override()} | {str(key) for key in params}
    return swept, {o.key_or_group for o in overrides} - swept


def resume_command(folder: Path) -> str:
    """The command that resumes the sweep of this process."""
    others = [a for a in sys.argv[1:] if a not in ("-m", "--multirun") and not a.startswith("run_dir=")]
    return shlex.join([*typed_program(flags=False), "-m", setting("run_dir", folder), *others])


def folder_name(text: str) -> str:
    """The text without slashes; a long one is cut and ends in a hash of the whole; `${folder_name:...}` in YAML."""
    text = text.replace("/", "%2F")
    if len(text.encode()) <= LONGEST_NAME:
        return text
    return f"{text[:100]}...{hashlib.sha256(text.encode()).hexdigest()[:12]}"
