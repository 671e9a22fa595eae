"""`rfdit COMMAND --help`, from the files in `conf/`; imports nothing heavy, so that it answers at once."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from rfdit.config.described import CONFIG_DIR, Described, Setting, describe, header, option_names

COLUMN = 42  # where comments begin
SCRIPTS = {"train": ", also python train.py", "sample": ", also python sample.py"}


def help_text(command: str, arguments: Sequence[str] = ()) -> str:
    """What a command does, three examples, its groups and its settings.

    arguments: those beside --help; the settings are those of the options that they choose.
    Raises ValueError for an option that does not exist.
    """
    about, examples = header((CONFIG_DIR / f"{command}.yaml").read_text(encoding="utf-8"))
    width = max(80, shutil.get_terminal_size((120, 24)).columns)
    described = describe(command, _chosen(command, arguments))
    parts = [
        f"usage: rfdit {command} [GROUP=OPTION] [SETTING=VALUE]" + SCRIPTS.get(command, ""),
        "\n".join(textwrap.wrap(about, width)),
        "examples:\n" + "\n".join(f"  {example}" for example in examples),
    ]
    if described.groups:
        parts.append(
            "groups, each with the option that is chosen now:\n" + "\n".join(_groups(described, width))
        )
    for title, settings in _sections(described):
        lines = (
            _line(f"{s.name}={s.default}" if s.default else s.name, _meaning(s), width) for s in settings
        )
        parts.append(f"{title}:\n" + "\n".join(lines))
    parts.append(
        "The same with other options: rfdit " + command + " GROUP=OPTION --help. "
        "Every value as it is composed: rfdit " + command + " --cfg job"
    )
    return "\n\n".join(parts) + "\n"


def _chosen(command: str, arguments: Sequence[str]) -> dict[str, str]:
    """The options of groups among the arguments."""
    pairs = [argument.split("=", 1) for argument in arguments if "=" in argument]
    chosen = {name: option for name, option in pairs if (CONFIG_DIR / name).is_dir()}
    for name, chosen_options in chosen.items():
        options = option_names(CONFIG_DIR / name)
        for option in chosen_options.strip("[]").split(","):
            if option.strip() not in options:
                raise ValueError(f"{name}={option.strip()} does not exist; choose from {', '.join(options)}")
    return chosen


def _groups(described: Described, width: int) -> Iterator[str]:
    for group in described.groups.values():
        others = [option for option in group.options if option != group.option]
        also = f"(also {', '.join(others)})" if others else ""
        yield _line(f"{group.name}={group.option or 'null'}", f"{group.meaning} {also}".strip(), width)


def _sections(described: Described) -> Iterator[tuple[str, list[Setting]]]:
    """The settings by the first part of their names, those of the root first."""
    sections: dict[str, list[Setting]] = {"settings": []}
    for setting in described.settings.values():
        if _is_set(setting):
            first, dot, _ = setting.name.partition(".")
            sections.setdefault(f"settings of {first}" if dot else "settings", []).append(setting)
    return ((title, settings) for title, settings in sections.items() if settings)


def _is_set(setting: Setting) -> bool:
    """False for what connects the parts, which nobody sets: classes, and values that come from elsewhere."""
    if setting.name.endswith("_target_") or (CONFIG_DIR / setting.name).is_dir():
        return False
    wired = re.fullmatch(r"\$\{.*\}|\{_target_:.*", setting.default) is not None
    return bool(setting.meaning) or not wired


def _meaning(setting: Setting) -> str:
    return f"{setting.meaning} (must be given)" if setting.default == "???" else setting.meaning


def _line(left: str, meaning: str, width: int) -> str:
    """One entry of a table of two columns, whose second one is wrapped."""
    indent = " " * COLUMN
    lines = textwrap.wrap(meaning, width - COLUMN) or [""]
    first = f"  {left}".ljust(COLUMN - 1)
    if len(first) >= COLUMN:
        return "\n".join([first.rstrip(), *(f"{indent}{line}" for line in lines if line)])
    return "\n".join([f"{first} {lines[0]}".rstrip(), *(f"{indent}{line}" for line in lines[1:])])
