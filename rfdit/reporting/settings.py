"""The settings in which runs differ, by value: typed or default, and the option's name for a group."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rfdit.config.build import CONFIG_DIR
from rfdit.reporting.runs import Run
from rfdit.storage.untrusted import read_yaml


def swept_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that some run was given and of which runs have different values.

    A run that failed before it had a configuration does not count.
    """
    known = [run for run in runs if run.config]
    names = sorted({name for run in known for name in run.settings})
    return [name for name in names if len({str(value_of(run, name)) for run in known}) > 1]


def value_of(run: Run, name: str) -> Any:
    """The value of a setting in a run; None if it is not known.

    Of a group, it is the option that was typed, else that of the run's experiment, else the default.
    """
    value: Any = run.config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            break
        value = value[part]
    else:
        if not isinstance(value, Mapping):
            return "null" if value is None else value
    if name in run.settings:
        return run.settings[name]
    experiment = run.settings.get("experiment", "")
    files = [CONFIG_DIR / "train.yaml"]
    if re.fullmatch(r"\w+", experiment) and (file := CONFIG_DIR / f"experiment/{experiment}.yaml").exists():
        files.append(file)
    return {group: option for file in files for group, option in _options(file).items()}.get(name)


@lru_cache
def _options(file: Path) -> dict[str, str | None]:
    """The options that a file's list of defaults chooses, by group."""
    entries = [entry for entry in read_yaml(file).get("defaults", ()) if isinstance(entry, Mapping)]
    return {
        group.removeprefix("override ").lstrip("/"): option
        for entry in entries
        for group, option in entry.items()
    }
