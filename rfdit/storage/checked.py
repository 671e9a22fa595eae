"""Files with a checksum of their own contents: JSON, arrays and text, which are known to be whole when they are read.

The checksum is a BLAKE2b of all bytes before it. A file that was edited is refused like a damaged one.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rfdit.storage.atomic import write_bytes

DIGEST_BYTES = 16
# The end of a JSON object: its last member is the checksum of the text before that member.
JSON_END = re.compile(rb',\s+"checksum": "([0-9a-f]{32})"\s*\}\n?\Z')
END_BYTES = 100  # more than the end has
# The first and the last line of a text, both of them comments: what is cut off at either end leaves the other.
FIRST_LINE = b"# written by rfdit; the last line is a checksum of the others\n"
LAST_LINE = re.compile(rb"^# checksum: ([0-9a-f]{32})\n\Z", re.MULTILINE)


class DamagedFileError(ValueError):
    """A file that is not what was written; the message is a sentence that begins with its name."""


def checked_json(data: Mapping[str, Any], *, indent: int | None = 2) -> bytes:
    """A JSON object with its checksum as the last member. indent: None writes it on one line, without an end."""
    text = json.dumps(data, indent=indent, ensure_ascii=False).encode(errors="surrogatepass")
    body = text[:-1].rstrip()
    if indent is None:
        return body + b', "checksum": "%s"}' % _digest(body).hex().encode()
    return body + b',\n%s"checksum": "%s"\n}\n' % (b" " * indent, _digest(body).hex().encode())


def parse_checked_json(data: bytes, *, place: str) -> dict[str, Any]:
    """The object in the bytes of `checked_json`, without its checksum. place: the name of the file.

    Raises DamagedFileError for any other bytes.
    """
    end = JSON_END.search(data, max(0, len(data) - END_BYTES))
    if end is None or bytes.fromhex(end[1].decode()) != _digest(data[: end.start()]):
        raise _damaged(place)
    try:
        found = json.loads(data)
        del found["checksum"]
        return dict(found)
    except (ValueError, RecursionError, TypeError, KeyError):  # somebody else's, with the right checksum
        raise _damaged(place) from None


def write_checked_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `checked_json` atomically and durably."""
    write_bytes(path, checked_json(data), durable=True)


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read what `write_checked_json` wrote; raises DamagedFileError for a damaged file, OSError without one."""
    return parse_checked_json(path.read_bytes(), place=str(path))


def checked_text(text: str) -> bytes:
    """A text with its checksum in comments, for files whose lines may begin with #."""
    body = FIRST_LINE + text.encode()
    return body + b"# checksum: %s\n" % _digest(body).hex().encode()


def check_text(data: bytes, *, place: str) -> None:
    """Raises DamagedFileError for the bytes of `checked_text` once they have changed, and for none at all.

    Bytes that have neither its first line nor its last are somebody else's, and are not checked.
    place: the name of the file.
    """
    end = LAST_LINE.search(data, max(0, len(data) - END_BYTES))
    begins = data.startswith(FIRST_LINE)
    whole = end and bytes.fromhex(end[1].decode()) == _digest(data[: end.start()])
    if not data or ((begins or end) and not (begins and whole)):
        raise _damaged(place)


def write_checked_arrays(path: Path, about: Mapping[str, Any], **arrays: np.ndarray) -> None:
    """Write arrays, and plain data about them, atomically: an npz followed by its checksum."""
    encoded = np.frombuffer(json.dumps(about).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, about=encoded, **arrays)
    data = buffer.getvalue()
    write_bytes(path, data + _digest(data))


def read_checked_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The plain data and the arrays of `write_checked_arrays`.

    Raises DamagedFileError for a damaged file, OSError without one.
    """
    data = path.read_bytes()
    if _digest(data[:-DIGEST_BYTES]) != data[-DIGEST_BYTES:]:
        raise _damaged(str(path))
    with np.load(io.BytesIO(data)) as found:
        arrays = {name: found[name] for name in found.files}
    return json.loads(bytes(arrays.pop("about"))), arrays


@contextmanager
def structure(file: Path) -> Iterator[None]:
    """Context that uses what is in a file with the right checksum: another structure than was written is damage."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError):
        raise _damaged(str(file)) from None


def whole_numbers(values: Any) -> bool:
    """True for counts: whole numbers from 0 on."""
    return all(type(value) is int and value >= 0 for value in values)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _damaged(place: str) -> DamagedFileError:
    return DamagedFileError(f"{place} is damaged or was edited: it is not what was written")
