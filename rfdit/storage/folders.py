"""Folders that a command writes to."""

import errno
import tempfile
from pathlib import Path


def make_folder(path: Path, *, setting: str) -> None:
    """Make an output folder, and try to write in it, before there is anything to lose.

    Raises ValueError, naming the setting, if the folder cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(unusable(path, error, setting=setting)) from None


def unusable(path: Path | str, error: OSError, *, setting: str) -> str:
    """A sentence about an output folder that an error of the system stands against."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{setting}={path} is a file, or below one; give a folder"
    return f"{setting}={path} cannot be written to ({error.strerror}); give another folder"
