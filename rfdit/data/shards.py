"""The shards that a setting names: patterns, lists, folders, URLs and commands."""

import glob
import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence

import braceexpand

from rfdit.counted import counted
from rfdit.data.contents import contents_of

# A pattern, several, or a function that writes the shards and returns their paths.
Shards = str | Sequence[str] | Callable[[], list[str]]
TARS = (".tar",)
MAX_SHARDS = 1_000_000  # that one pattern may name: five times those of LAION-5B
# The syntax of braceexpand: ranges of numbers or letters, with a step, and the signs of alternatives.
BRACES = re.compile(
    r"\\.|\{(?:(-?\d+)\.\.(-?\d+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?(\d+))?\}|[{},]", re.DOTALL
)


def resolve_shards(
    shards: Shards, *, setting: str = "data.shards", suffixes: Sequence[str] = TARS
) -> list[str]:
    """The shards in reading order, however they are given."""
    return shards() if callable(shards) else expand_shards(shards, setting=setting, suffixes=suffixes)


def expand_shards(
    pattern: str | Sequence[str], *, setting: str = "data.shards", suffixes: Sequence[str] = TARS
) -> list[str]:
    """The shards that a pattern names, in a fixed order.

    pattern: a file, a folder, a glob, an http(s) or other URL, a `pipe:` command, each optionally with
        {000..123} or {a,b} braces, or a list of such patterns.
    suffixes: suffixes of the files that a folder stands for; without suffixes a folder is a shard itself.
    Raises ValueError, naming `setting`, if nothing matches, or braces stand for more than `MAX_SHARDS`.
    """
    if not isinstance(pattern, str):
        if not pattern:
            raise _no_match(pattern, setting)
        expanded = [expand_shards(each, setting=setting, suffixes=suffixes) for each in pattern]
        shards = list(itertools.chain(*expanded))
        unique = list(dict.fromkeys(shards))
        if len(unique) < len(shards):
            warnings.warn(
                f"{setting} names {counted(len(shards) - len(unique), 'shard')} twice; each is read once",
                stacklevel=2,
            )
        return unique
    if _expansions(pattern) > MAX_SHARDS:
        raise ValueError(
            f"{setting}={pattern!r} names more than {MAX_SHARDS:,} shards, which is the limit; name those that exist"
        )
    pieces = list(braceexpand.braceexpand(pattern)) if "{" in pattern else [pattern]
    if is_remote(pattern):
        return pieces
    found = [_local(os.path.expanduser(piece), suffixes, setting) for piece in pieces]
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


def _expansions(pattern: str) -> int:
    """The number of strings that a pattern's braces stand for, without making them."""
    # Of each open brace, the strings of its finished alternatives and of the one that goes on.
    groups = [[0, 1]]
    for token in BRACES.finditer(pattern):
        first, last, letter, last_letter, step = token.groups()
        if first or letter:
            distance = abs(int(first) - int(last)) if first else abs(ord(letter) - ord(last_letter))
            groups[-1][1] *= distance // max(int(step or 1), 1) + 1
        elif token[0] == "{":
            groups.append([0, 1])
        elif token[0] == "," and len(groups) > 1:
            groups[-1] = [sum(groups[-1]), 1]
        elif token[0] == "}" and len(groups) > 1:
            inside = sum(groups.pop())
            groups[-1][1] *= inside
    return math.prod(sum(group) for group in groups)


def is_remote(pattern: str) -> bool:
    """True for a URL or a `pipe:` command, False for a file."""
    return pattern.startswith("pipe:") or re.match(r"[a-z][a-z0-9+]*://", pattern, re.IGNORECASE) is not None


def _local(path: str, suffixes: Sequence[str], setting: str) -> list[str]:
    """Existing files; an existing name is taken literally, even if it has a glob's characters."""
    if os.path.isdir(path) and suffixes:
        files = sorted(entry.path for entry in os.scandir(path))
        compressed = tuple(suffix + end for suffix in suffixes for end in (".gz", ".bz2", ".xz", ".zst"))
        if left_out := [file for file in files if file.lower().endswith((*compressed, ".tgz"))]:
            warnings.warn(
                f"{setting}={path}: leaving out {counted(len(left_out), 'compressed file')}, the first is "
                f"{left_out[0]}; unpack them to be read",
                stacklevel=3,
            )
        return [file for file in files if file.lower().endswith(tuple(suffixes))]
    if os.path.exists(path):
        return [path]
    return sorted(glob.glob(path, recursive=True))


def _no_match(pattern: str | Sequence[str], setting: str) -> ValueError:
    if isinstance(pattern, str) and os.path.isdir(folder := os.path.expanduser(pattern)):
        return ValueError(
            f"{setting}={pattern} has no file of this kind of data; it holds {contents_of(folder)}"
        )
    return ValueError(
        f"{setting}={pattern!r} matches no file; give a glob, a {{000..123}} brace pattern, a list, a folder "
        "of .tar files, an http(s) URL or a pipe: command"
    )
