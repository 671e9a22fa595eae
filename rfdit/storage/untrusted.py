"""Files of unknown origin: JSON and YAML within bounds, plain data, and one sentence for whatever else is in them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from rfdit.storage.checked import DamagedFileError, check_text

MOST_BYTES = 64 << 20  # size of a JSON file of settings or records
MOST_YAML = 1 << 20  # size of a YAML file, which takes a hundred times as long to read
MOST_DEPTH, MOST_VALUES = 64, 1_000_000
PLAIN = (str, int, float, bool, NoneType)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Context for work on data of unknown origin: turns all errors but ValueError and OSError into ValueError.

    what: the beginning of the message; the error's first line follows.
    """
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{what} ({first_line(error)})") from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Context for others' readers: turns all errors but OSError into a ValueError of one line.

    what: the beginning of the message; the reader's own first line follows.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # each has many
        raise ValueError(f"{what}: {str(error).partition(chr(10))[0] or type(error).__name__}") from None


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def unreadable(what: str, error: OSError) -> OSError:
    """The error about a file that is not damaged, but that may not or cannot be opened."""
    return type(error)(f"{what} cannot be read: {error.strerror or error}")


def read_json(file: Path) -> Any:
    """The plain data in a JSON file, as `check_plain` states it.

    Raises ValueError, naming the file, for any other file, and OSError for one that cannot be read.
    """
    return _read(file, "JSON", json.loads, MOST_BYTES)


def read_yaml(file: Path) -> Any:
    """As `read_json`, for YAML; aliases are counted as often as they are repeated.

    Raises DamagedFileError for a file of `checked_text` that has changed.
    """

    def parse(data: bytes) -> Any:
        check_text(data, place=str(file))
        return yaml.safe_load(data)

    return _read(file, "YAML", parse, MOST_YAML)


def _read(file: Path, kind: str, parse: Callable[[bytes], Any], most: int) -> Any:
    try:
        with file.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise unreadable(str(file), error) from None
    if len(data) > most:
        raise ValueError(f"{file} has more than {most >> 20} MiB, which no file of settings has")
    try:
        found = parse(data)
    except DamagedFileError:
        raise
    except Exception as error:  # of a parser, which has many
        raise ValueError(f"{file} is not a {kind} file ({first_line(error)})") from None
    check_plain(found, str(file))
    return found


def check_plain(data: Any, name: str) -> None:
    """Raises ValueError unless data is mappings with text as keys, lists, text, numbers, booleans and null.

    name: what the data is called in the message. Data that is too deep or has too many values, also by
    repeating some of them, is refused too.
    """
    waiting, seen = [(name, data, 0)], 0
    while waiting:
        path, value, depth = waiting.pop()
        seen += 1
        if depth > MOST_DEPTH or seen > MOST_VALUES:
            raise ValueError(f"{name} is nested too deeply, or has too many values, to be settings")
        if type(value) is dict:
            if kinds := {type(key).__name__ for key in value} - {"str"}:
                raise ValueError(f"{path} has a key of the type {min(kinds)}, and keys are text")
            waiting += [(f"{path}.{key}", child, depth + 1) for key, child in value.items()]
        elif type(value) is list:
            waiting += [(f"{path}.{i}", child, depth + 1) for i, child in enumerate(value)]
        elif type(value) not in PLAIN:
            raise ValueError(f"{path} is a {type(value).__name__}, and settings are text, numbers and lists")
