"""Which tar shards a setting means."""

import glob
import itertools
import os
import re
import warnings
from collections.abc import Callable, Sequence

import braceexpand

# A pattern, several, or something that makes the shards and says where they are.
Shards = str | Sequence[str] | Callable[[], list[str]]
TARS = (".tar",)


def resolve_shards(
    shards: Shards, *, setting: str = "data.shards", suffixes: Sequence[str] = TARS
) -> list[str]:
    """The shards in reading order, whichever way they are given."""
    return shards() if callable(shards) else expand_shards(shards, setting=setting, suffixes=suffixes)


def expand_shards(
    pattern: str | Sequence[str], *, setting: str = "data.shards", suffixes: Sequence[str] = TARS
) -> list[str]:
    """The shards that a pattern names, in a fixed order.

    pattern: a file, a folder, a glob, an http(s) or other URL, a `pipe:` command, each with {000..123} or
        {a,b} braces if wanted, or a list of such patterns.
    suffixes: of the files that a folder stands for; without any it stands for itself.
    Raises ValueError, naming `setting`, if nothing matches.
    """
    if not isinstance(pattern, str):
        if not pattern:
            raise _no_match(pattern, setting)
        named = [expand_shards(each, setting=setting, suffixes=suffixes) for each in pattern]
        shards = list(itertools.chain(*named))
        once = list(dict.fromkeys(shards))
        if len(once) < len(shards):
            warnings.warn(
                f"{setting} names {len(shards) - len(once)} shards twice; they are read once", stacklevel=2
            )
        return once
    pieces = list(braceexpand.braceexpand(pattern)) if "{" in pattern else [pattern]
    if is_remote(pattern):
        return pieces
    found = [_local(os.path.expanduser(piece), suffixes) for piece in pieces]
    shards = [shard for files in found for shard in files]
    if not shards:
        raise _no_match(pattern, setting)
    missing = [piece for piece, files in zip(pieces, found, strict=True) if not files]
    if missing:
        warnings.warn(
            f"{setting}={pattern!r}: {len(missing)} of {len(pieces)} shards do not exist, "
            f"the first is {missing[0]}",
            stacklevel=2,
        )
    return shards


def is_remote(pattern: str) -> bool:
    """Whether it is a URL or a `pipe:` command, rather than a file."""
    return pattern.startswith("pipe:") or re.match(r"[a-z][a-z0-9+]*://", pattern, re.IGNORECASE) is not None


def _local(path: str, suffixes: Sequence[str]) -> list[str]:
    """Existing files; a name that exists is taken as it is, even if it has a glob's characters."""
    if os.path.isdir(path) and suffixes:
        return sorted(entry.path for entry in os.scandir(path) if entry.name.endswith(tuple(suffixes)))
    if os.path.exists(path):
        return [path]
    return sorted(glob.glob(path, recursive=True))


def _no_match(pattern: str | Sequence[str], setting: str) -> ValueError:
    return ValueError(
        f"{setting}={pattern!r} matches no file; give a glob, a {{000..123}} brace pattern, a list, a folder "
        "of .tar files, an http(s) URL or a pipe: command"
    )
