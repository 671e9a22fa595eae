"""Errors that a user can act on, printed as one sentence in place of a traceback."""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from rfdit.config.build import CONFIG_DIR, default_settings
from rfdit.config.described import in_order
from rfdit.config.mistyped import meant, nearest, option_named, options_with
from rfdit.config.overrides import unreadable
from rfdit.config.signatures import FROM_LIGHTNING
from rfdit.extras import SWEEPS, missing_package
from rfdit.processes.workers import worker_death

# What OmegaConf asks of the settings of a root, by the last word of its message.
OMEGACONF = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "ListConfig": "a list: {name}=[A,B]",
}
OF_THE_GRAMMAR = "token recognition error|no viable alternative|mismatched input|extraneous input"


@contextmanager
def explain_errors(config_name: str, *also: type[Exception]) -> Iterator[None]:
    """Ends the program with one sentence and exit code 1 for errors of Hydra, OmegaConf and the given types.

    The death of a DataLoader worker is one of them too.

    RFDIT_TRACEBACK=1 shows where they were raised.
    """
    # Otherwise Hydra prints errors itself, in its own words, and exits.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        yield
    except Exception as error:
        known = isinstance(error, (HydraException, OmegaConfBaseException, *also)) or _is_of_null_group(error)
        known = known or worker_death(error) is not None or missing_package(error) is not None
        if os.environ.get("RFDIT_TRACEBACK") or not known:
            raise
        raise SystemExit(f"error: {sentence(error, config_name)}") from None


def sentence(error: Exception, config_name: str) -> str:
    """A sentence that names the mistake behind an error of Hydra, OmegaConf or rfdit, and what to write instead."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if text.startswith("Caught "):  # in a DataLoader worker, with its traceback as text
        text = text.splitlines()[-1].partition(": ")[2]
    if (missing := missing_package(error)) is not None:
        return missing
    if death := worker_death(error):
        workers = "data.num_workers" if config_name == "train" else "num_workers"
        return f"{death}; if memory ran out, give a smaller {workers} or a smaller batch"
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if re.match(OF_THE_GRAMMAR, text):  # the parser's own error, which does not name the override
        return f"{text}; write each text in quotes, such as 'prompts=[\"a red circle\"]'"
    if _is_of_null_group(error):
        return "null is not an option of a group; leave the group out, or write ~GROUP to remove it"
    if several := re.match(r"Ambiguous value for argument '(([^=']*)=([^']*))'", text):
        typed, name, value = several.groups()
        point = ""
        if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", value):
            point = f"; in thousands it is {name}={value.replace(',', '')}"
        elif re.fullmatch(r"\d,\d+", value):
            point = f"; with a decimal point it is {name}={value.replace(',', '.')}"
        return f"{typed} gives several values, which is a sweep: add -m, or write a list as {name}=[{value}]{point}"
    if several := re.match(r"Sweep parameters '(([^=']*)=.*)' requires --multirun", text):
        return f"{several[1]} gives several values, which is a sweep: add -m, or write a list as {several[2]}=[A,B]"
    if unknown := re.match(r"Interpolation key '([^']+)' not found", text):
        return (
            f"there is no setting {unknown[1]}, whose value another one takes: give it, leave out ~{unknown[1]}, or "
            "write \\${ where the characters are meant"
        )
    if added := re.match(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"{added[1]} is there already; write {added[1]}=... without +"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if name in SWEEPS and group.startswith("hydra/"):
            return f"{group}={name} is not installed; run pip install 'rfdit[sweeps]'"
        near = difflib.get_close_matches(name.lower(), error.options, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{group}={name} does not exist; {hint}choose from {', '.join(sorted(error.options, key=in_order))}"
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return f"{unknown[1]} is not a setting{_suggestion(unknown[1], config_name)}"
    if text.startswith("Error merging override") and error.__cause__ is not None:
        typed, cause = text.removeprefix("Error merging override "), str(error.__cause__).splitlines()[0]
        if kind := re.search(
            r"could not be converted to (Integer|Float)|not a valid bool|is not a ListConfig", cause
        ):
            return f"{typed} must be {OMEGACONF[kind[0].split()[-1]].format(name=typed.partition('=')[0])}"
        return f"{typed}: {cause}"
    text = text.removeprefix("ValueError raised while resolving interpolation: ")
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("full_key", "object_type")))


def _is_of_null_group(error: Exception) -> bool:
    """True for Hydra's error about GROUP=null, which does not name the group."""
    return isinstance(error, ValueError) and str(error).startswith("Config group override must be")


def _suggestion(path: str, config_name: str) -> str:
    """The end of a sentence: the nearest setting, or the name that Lightning's setting has here."""
    if path in FROM_LIGHTNING:
        return f"; write {FROM_LIGHTNING[path]}"
    GlobalHydra.instance().clear()  # the failed start left Hydra half initialised
    settings = default_settings(config_name)
    if path in settings:
        return " here, since another override has replaced the group that it belongs to"
    if options := options_with(path, CONFIG_DIR):
        return f" here; it belongs to {' or '.join(options)}"
    groups = [folder.name for folder in CONFIG_DIR.iterdir() if folder.is_dir()]
    known = [name for name in [*settings, *groups] if "_target_" not in name]
    found = meant(path, known) or option_named(path, CONFIG_DIR, settings) or nearest(path, known)
    return f"; did you mean {found}?" if found else f"; rfdit {config_name} --help lists them all"
