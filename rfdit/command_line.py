"""Errors that a user can act on end in one sentence, not in a traceback."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException


@contextmanager
def explain_errors(*also: type[Exception]) -> Iterator[None]:
    """Prints errors of the configuration, and those of the given types, as one sentence; exit code 1.

    RFDIT_TRACEBACK=1 shows where they were raised.
    """
    # Otherwise Hydra prints errors itself, in its own words, and exits.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        yield
    except Exception as error:
        if not isinstance(error, (HydraException, OmegaConfBaseException, *also)):
            raise
        if os.environ.get("RFDIT_TRACEBACK"):
            raise
        raise SystemExit(f"error: {sentence(error)}") from None


def sentence(error: Exception) -> str:
    """What is wrong and what to write, from an error of Hydra, OmegaConf or our own."""
    text = str(error).strip()
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return f"{unknown[1]} is no setting; see the files in conf/, or run with --cfg job to print them all"
    option = re.search(
        r"Could not find '([^']+)'\s*\n+Available options in '([^']+)':\n((?:\s*\S+\n?)+)", text
    )
    if option:
        group, _, name = option[1].rpartition("/")
        return f"{group}={name} does not exist; choose from {', '.join(option[3].split())}"
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and "full_key" not in line)
