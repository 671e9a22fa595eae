"""Which tar shards a pattern means."""

import glob
from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand


def expand_shards(pattern: str | Sequence[str], setting: str = "data.shards") -> list[str]:
    """The shards of a glob, brace pattern, folder, http(s) URL or `pipe:` command, or of a list of these.

    Braces are expanded in their own order, everything else is sorted. URLs and commands are not
    tried here; a local pattern that matches no file raises ValueError and names `setting`.
    """
    if not isinstance(pattern, str):
        if not pattern:
            raise ValueError(f"{setting}=[] names no shard; give a glob, a brace pattern, a URL or a list")
        return [shard for one in pattern for shard in expand_shards(one, setting)]
    if pattern.startswith("pipe:"):
        return [pattern]  # a command's braces are the shell's
    shards: list[str] = []
    for part in braceexpand(pattern):
        if "://" in part:
            shards.append(part)
            continue
        path = Path(part).expanduser()
        found = sorted(str(f) for f in path.glob("*.tar")) if path.is_dir() else sorted(glob.glob(str(path)))
        if not found:
            raise ValueError(
                f"{setting}='{pattern}' matches no file ('{part}'); give a glob, a brace pattern, "
                "a folder of .tar files, an http(s) URL, pipe:COMMAND or a list of these"
            )
        shards += found
    return shards
