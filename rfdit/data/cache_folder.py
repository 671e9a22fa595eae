"""Where rfdit keeps what it can make again."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def cache_root() -> Path:
    """$XDG_CACHE_HOME/rfdit, by default ~/.cache/rfdit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfdit"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes beside the target and renames: readers see the whole file or none, whoever else writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            write(file)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
