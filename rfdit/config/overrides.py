"""Overrides on a command line: what Hydra's grammar cannot read as it was typed is quoted for it."""

import difflib
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from rfdit.config.described import option_names
from rfdit.config.mistyped import check_words

OVERRIDE = re.compile(r"\+{0,2}([A-Za-z_][\w./@:-]*)=(.*)", re.DOTALL)
QUOTED = r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^'\\]|\\.)*'"
# Brackets in pairs and apostrophes inside words; a comma between brackets might separate items, or not.
PLAIN = r"(?!\[|\{)(?:[^,\[\](){}\"'\\]|\([^,\[\](){}\"']*\)|\[[^,\[\](){}\"']*\]|\{[^,\[\](){}\"']*\}|(?<=\w)'(?=\w))+"
ITEM = re.compile(rf"\s*({QUOTED}|{PLAIN}?)\s*(,|\Z)", re.DOTALL)
PARSER = OverridesParser.create()
# Settings for which a group's name is mistaken, where the value is a number, and where it is a path.
NUMBERS = {
    "ema": "callbacks.ema.profiles.ema.decay",
    "guidance": "guidance.scale",
    "sampler": "sampler.steps",
}
PATHS = {
    "autoencoder": "autoencoder.source",
    "data": "data.shards",
    "init": "init.ckpt",
    "network": "network.weights",
}


def quoted(text: str) -> str:
    """A text as Hydra reads it on a command line, whatever is in it: none of it is an interpolation."""
    text = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)
    return _in_quotes(text)


def _in_quotes(text: str) -> str:
    """The text in double quotes; interpolations stay what they are."""
    text = re.sub(r"(\\*)\"", lambda found: 2 * found[1] + r"\"", text)
    text = re.sub(r"(\\+)\Z", lambda found: 2 * found[1], text)
    return f'"{text}"'


def setting(name: str, value: object) -> str:
    """The override that sets a text or a path, in quotes where Hydra would not read it as it stands."""
    text = str(value)
    parsed = None if "${" in text else _parse(f"{name}={text}")
    as_it_is = parsed is not None and parsed.value() == text
    return f"{name}={text if as_it_is else quoted(text)}"


def understood(
    arguments: Sequence[str],
    *,
    texts: Collection[str],
    groups: Path,
    sweep: bool = False,
    named: Collection[str] = (),
) -> list[str]:
    """A command's arguments, with quotes around what was typed without them and has one meaning only.

    A value that Hydra cannot parse is a text, and settings that are texts keep the characters that were
    typed, also those of numbers: `ckpt=runs/patch=p4`, `run_dir=2024_01`, `prompts=[1.10]`.

    texts: the names of the command's settings that are texts or lists of them.
    groups: the folder of the config groups, whose options have names.
    sweep: commas separate the points of a sweep.
    named: settings whose parts may have any name, and are added: `micro.aesthetic=6`.
    Raises ValueError for shards that are given twice in a row, which is what a shell makes of braces without
    quotes, for a number as a group's option, and as `check_words`.
    """
    check_words(arguments, names=texts, groups=groups)
    for one, other in pairwise(arguments):
        _check_braces(one, other)
    found = [_understood(argument, texts=texts, groups=groups, sweep=sweep) for argument in arguments]
    return [f"++{each}" if each.startswith(tuple(f"{name}." for name in named)) else each for each in found]


def _check_braces(one: str, other: str) -> None:
    """Raises ValueError for two arguments that may come from one with braces."""
    first, second = OVERRIDE.fullmatch(one), OVERRIDE.fullmatch(other)
    if one == other or not first or not second or first[1] != second[1]:
        return
    if not first[1].endswith(
        "shards"
    ):  # other settings are no lists of files, and the second value replaces the first
        return
    if first[2].count("/") != second[2].count("/"):  # the second one is meant to replace the first
        return
    if all(parsed is None or isinstance(parsed.value(), str) for parsed in map(_parse, (one, other))):
        raise ValueError(
            f"{first[1]} is given twice, as {first[2]} and as {second[2]}; a shell expands braces unless they are "
            f"quoted: '{first[1]}=\"PATH/{{00..99}}.tar\"'"
        )


def _understood(argument: str, *, texts: Collection[str], groups: Path, sweep: bool) -> str:
    found = OVERRIDE.fullmatch(argument)
    if found is None:
        return argument
    name, value = found.groups()
    is_text, parsed = name in texts, _parse(argument)
    if parsed is None:
        replaced = _text(value, texts=is_text, sweep=sweep)
    elif is_text and _changes_text(parsed, sweep=sweep):
        replaced = _list(value, texts=True) if value.startswith("[") else _in_quotes(value)
    else:
        _check_option(name, parsed, groups)
        return argument
    return argument if replaced is None else argument.removesuffix(value) + replaced


def unreadable(override: str) -> str:
    """A sentence about an override that Hydra cannot parse, with the form to type."""
    found = OVERRIDE.fullmatch(override)
    if found is None:
        return f"{override} cannot be read as SETTING=VALUE; quote values with spaces, such as 'prompts=[a red circle]'"
    name, value = found.groups()
    for opening, closing in ("[]", "{}"):
        if value.startswith(opening) and not value.endswith(closing):
            return (
                f"{override} has no closing {closing}; since a shell divides at spaces, quote all of it: "
                f"'{name}={opening}...{closing}'"
            )
    if value.startswith("["):
        proposed = _list(value, texts=False) or f"[{quoted(value[1:-1].strip())}]"
    else:
        proposed = quoted(value)
    return f"{override} cannot be read; write each text in quotes: {shlex.quote(f'{name}={proposed}')}"


def _parse(override: str) -> Override | None:
    """The override as Hydra parses it; None if it cannot."""
    try:
        return PARSER.parse_override(override)
    except HydraException:
        return None


def _text(value: str, *, texts: bool, sweep: bool) -> str | None:
    """An unreadable value in quotes; None if it has several meanings. texts: as for `_list`."""
    if value.startswith("["):
        return _list(value, texts=texts)
    if value.startswith(("{", '"', "'")) or (sweep and "," in value):
        return None
    return _in_quotes(value)


def _list(value: str, *, texts: bool) -> str | None:
    """A list with quotes around its texts; None if it cannot be told where one ends.

    texts: all items are texts; otherwise those that Hydra cannot parse.
    """
    inside, items, end = value[1:-1], [], 0
    if not value.endswith("]"):
        return None
    while inside[end:].strip():
        found = ITEM.match(inside, end)
        if found is None or not found[1]:
            return None
        item, end = found[1].strip(), found.end()
        as_it_is = re.fullmatch(QUOTED, item, re.DOTALL) or (not texts and _parse(f"x={item}"))
        items.append(item if as_it_is else _in_quotes(item))
    return f"[{','.join(items)}]"


def _changes_text(parsed: Override, *, sweep: bool) -> bool:
    """True if Hydra makes something else than a text of a setting that is one."""
    if parsed.is_sweep_override():
        return parsed.is_choice_sweep() and not sweep
    value: Any = parsed.value()
    items = value if isinstance(value, list) else [] if value is None else [value]
    return any(not isinstance(item, str | list | dict) for item in items)


def _check_option(name: str, parsed: Override, groups: Path) -> None:
    """Raises ValueError for a number, true or null as the option of a group."""
    group = groups / name.partition("@")[0]
    if not group.is_dir() or parsed.is_sweep_override() or parsed.is_delete():
        return
    value = parsed.value()
    if value is None:
        raise ValueError(
            f"{name}=null: null is not an option of a group; leave {name} out, or write ~{name} to remove it"
        )
    is_path = isinstance(value, str) and "/" in value and not (group / f"{value}.yaml").exists()
    if isinstance(value, int | float) or is_path:
        options = option_names(group)
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f"did you mean {name}={near[0]}? " if near else ""
        meant = PATHS if is_path else NUMBERS
        hint = f"did you mean {meant[name]}={value}? " if name in meant else hint
        raise ValueError(f"{name}={value} is not an option; {hint}choose from {', '.join(options)}")


def typed_program(*, flags: bool = True) -> list[str]:
    """The words that start this process's training again: `rfdit train` if it was started so, or `python train.py`.

    flags: append --config-dir=FOLDER, if it was given; Hydra does not count it among the overrides.
    """
    program = sys.argv[0].split() if sys.argv[0].startswith("rfdit ") else ["python", "train.py"]
    return [*program, *(word for word in sys.argv[1:] if flags and word.startswith("--config-dir="))]
