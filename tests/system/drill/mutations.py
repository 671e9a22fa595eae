"""Damage, as disks, copies, editors and strangers do it: functions of a file's bytes and a random generator."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]
# What no number, name or setting should be.
ODD: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: -1, lambda: 0, lambda: 10**30, lambda: 1e308, lambda: float("nan"),
    lambda: float("inf"), lambda: "", lambda: "\0", lambda: "x" * 100_000, lambda: "../../etc/passwd", list, dict,
    lambda: "é\ud800", lambda: [[[]]], lambda: {"_target_": "os.system"}, lambda: 0.5, lambda: [1, "2", None],
    lambda: "${oc.env:HOME}",
]  # fmt: skip
NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
NUMBERS = [
    b"1e999",
    b"-1",
    b"0",
    b"999999999999999999999999999999",
    b"NaN",
    b"-Infinity",
    b"0x10",
    b"1_0",
    b"2.5",
]
DEEP = b"[" * 100_000


def flip(data: bytes, draw: random.Random) -> bytes:
    """One to eight bits, anywhere."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def empty(data: bytes, draw: random.Random) -> bytes:
    return b""


def zero(data: bytes, draw: random.Random) -> bytes:
    """A block of zeros, as a file system leaves it after a loss of power."""
    start, length = _block(data, draw)
    return data[:start] + bytes(length) + data[start + length :]


def repeat(data: bytes, draw: random.Random) -> bytes:
    """A block twice."""
    start, length = _block(data, draw)
    return data[: start + length] + data[start:]


def remove(data: bytes, draw: random.Random) -> bytes:
    """A block missing in the middle."""
    start, length = _block(data, draw)
    return data[:start] + data[start + length :]


def insert(data: bytes, draw: random.Random) -> bytes:
    """Text or noise at any place."""
    at = draw.randrange(len(data) + 1)
    text = draw.choice(
        [b"hello", b"\n", b"\0", b"\xff\xfe", b'"', b"}", b",,,", b"\xef\xbb\xbf", draw.randbytes(40)]
    )
    return data[:at] + text + data[at:]


def append(data: bytes, draw: random.Random) -> bytes:
    return data + draw.choice([b"\n", b"garbage", bytes(512), draw.randbytes(100)])


def number(data: bytes, draw: random.Random) -> bytes:
    """One of the numbers in a text is another, which may be none at all."""
    found = list(NUMBER.finditer(data))
    if not found:
        return insert(data, draw)
    place = draw.choice(found)
    return data[: place.start()] + draw.choice(NUMBERS) + data[place.end() :]


def deep(data: bytes, draw: random.Random) -> bytes:
    """Brackets without end, after a colon if there is one."""
    places = [match.end() for match in re.finditer(b"[:,]", data)] or [0]
    at = draw.choice(places)
    return data[:at] + DEEP + data[at:]


def swap(data: bytes, draw: random.Random) -> bytes:
    """The beginning of a file of another kind."""
    return draw.choice([b"PK\3\4" + bytes(400), b"\x89PNG\r\n\x1a\n" + bytes(90), b'{"a": 1}\n', b"a: [b]\n"])


def _block(data: bytes, draw: random.Random) -> tuple[int, int]:
    length = min(len(data), draw.choice([1, 16, 512, 4096, 1 << 16]))
    return draw.randrange(len(data) - length + 1), length


DAMAGE: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (flip, cut, empty, zero, repeat, remove, insert, append, number, deep, swap)
}


def odd_tree(tree: Any, draw: random.Random) -> Any:
    """Plain data in which one value, chosen at random, is odd, is missing, or is another one of the data's."""
    places = list(_places(tree))
    if not places:
        return draw.choice(ODD)()
    holder, key = draw.choice(places)
    action = draw.random()
    if action < 0.2 and isinstance(holder, dict):
        del holder[key]
    elif action < 0.4:
        other, name = draw.choice(places)
        holder[key] = json.loads(json.dumps(other[name])) if _is_plain(other[name]) else other[name]
    else:
        holder[key] = draw.choice(ODD)()
    return tree


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _places(tree: Any) -> Any:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in entries:
        yield tree, key
        yield from _places(child)


def damage_file(file: Path, name: str, draw: random.Random) -> None:
    """Damages a file in place. name: of `DAMAGE` or `GONE`."""
    data = b""
    if name in DAMAGE:
        whole = file.read_bytes()
        data = DAMAGE[name](whole, draw) if whole else append(whole, draw)
    target = file.resolve()
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    if name == "folder":
        target.mkdir()
    elif name == "loop":
        target.symlink_to(target.name)
    elif name != "missing":
        target.write_bytes(data)


GONE = (
    "missing",
    "loop",
    "folder",
)  # after these there is no such file, and nobody can know that there was one
ALL = (*DAMAGE, *GONE)
SHORTER = ("cut", "empty")  # what is left of a log after these is an earlier state of it
