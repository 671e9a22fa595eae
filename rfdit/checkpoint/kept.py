"""Checkpoints that are kept while the last one is replaced: `step_00050000.ckpt` beside `last.ckpt`."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rfdit.checkpoint.sharded import remove_shards

NAME = re.compile(r"step_(\d{8,})\.ckpt")


def kept_file(folder: Path, step: int) -> Path:
    """The name under which the checkpoint of a step is kept in a folder."""
    return folder / f"step_{step:08d}.ckpt"


def kept_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints are kept in a folder, in order."""
    return sorted(int(found[1]) for file in folder.glob("*") if (found := NAME.fullmatch(file.name)))


@dataclass(frozen=True)
class Keeping:
    """Work to do once a checkpoint is written: a further name for it, and the kept ones that it replaces."""

    name: Path
    removed: Sequence[Path] = ()

    def after_writing(self, path: Path) -> None:
        """Give the checkpoint at `path` its further name, which costs no space, and remove the others."""
        _name_also(path, self.name)
        for file in self.removed:
            file.unlink(missing_ok=True)
        remove_shards(path)


def _name_also(path: Path, name: Path) -> None:
    """Let `name` mean the same checkpoint, also when `path` is replaced; atomically."""
    partial = name.with_name(f".{name.name}-{secrets.token_hex(4)}")
    try:
        if path.is_symlink():  # to a folder of shards
            partial.symlink_to(os.readlink(path))
        else:
            try:
                os.link(path, partial)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, partial)
        partial.replace(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
