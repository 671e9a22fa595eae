"""Errors that a user can act on end in one sentence, not in a traceback."""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from rfdit.config import default_settings
from rfdit.signatures import FROM_LIGHTNING


@contextmanager
def explain_errors(config_name: str, *also: type[Exception]) -> Iterator[None]:
    """Ends with one sentence for errors of the configuration and those of the given types; exit code 1.

    RFDIT_TRACEBACK=1 shows where they were raised.
    """
    # Otherwise Hydra prints errors itself, in its own words, and exits.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        yield
    except Exception as error:
        known = isinstance(error, (HydraException, OmegaConfBaseException, *also)) or _of_null_group(error)
        if os.environ.get("RFDIT_TRACEBACK") or not known:
            raise
        raise SystemExit(f"error: {sentence(error, config_name)}") from None


def sentence(error: Exception, config_name: str) -> str:
    """What is wrong and what to write, from an error of Hydra, OmegaConf or our own."""
    text = str(error).strip()
    if text.startswith("Caught "):  # in a DataLoader worker, with its traceback as text
        text = text.splitlines()[-1].partition(": ")[2]
    if _of_null_group(error):
        return "null is no option of a group of settings; leave that group out, or write ~GROUP to remove it"
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return f"{unknown[1]} is no setting{_suggest(unknown[1], config_name)}"
    if option := re.search(r"Could not find '([^']+)'\s+Available options in '[^']+':\n((?:\t.*\n?)+)", text):
        group, _, name = option[1].rpartition("/")
        return f"{group}={name} does not exist; choose from {', '.join(option[2].split())}"
    if text.startswith("Error merging override") and error.__cause__ is not None:
        return f"{text.removeprefix('Error merging override ')}: {str(error.__cause__).splitlines()[0]}"
    text = text.removeprefix("ValueError raised while resolving interpolation: ")
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("full_key", "object_type")))


def _of_null_group(error: Exception) -> bool:
    """Whether this is what Hydra says of GROUP=null, without naming the group."""
    return isinstance(error, ValueError) and str(error).startswith("Config group override must be")


def _suggest(path: str, config_name: str) -> str:
    """What to write instead: the nearest setting there is, or what Lightning's is called here."""
    if path in FROM_LIGHTNING:
        return f"; write {FROM_LIGHTNING[path]}"
    GlobalHydra.instance().clear()  # the failed start left Hydra half initialised
    settings = default_settings(config_name)
    if path in settings:
        return " here, since another override has replaced what it belongs to"
    near = difflib.get_close_matches(path, settings, n=1)
    return f"; did you mean {near[0]}?" if near else f"; conf/{config_name}.yaml and its groups list them all"
