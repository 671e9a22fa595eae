"""Nested settings under dotted names, and the settings in which two of them differ."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A setting that has two values. A setting that one side lacks is None there."""

    path: str
    here: Any
    there: Any

    def text(self, there: str = "there") -> str:
        """`path=value (there value)`."""
        return f"{self.path}={brief(self.here)} ({there} {brief(self.there)})"


def walk(node: Any, path: str = "", *, lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its dotted path, a mapping before what is in it.

    lists: descend into lists and tuples too, whose items are named by their numbers.
    """
    yield path, node
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif lists and isinstance(node, list | tuple):
        items = enumerate(node)
    for name, child in items:
        yield from walk(child, f"{path}.{name}" if path else str(name), lists=lists)


def flatten(node: Any) -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; lists are values, and empty mappings are left out."""
    return {path: value for path, value in walk(node) if not isinstance(value, Mapping)}


def differences(here: Any, there: Any, path: str = "") -> Iterator[Difference]:
    """The settings that have other values there, by name.

    Where only one side is a mapping, or has the setting at all, the whole of it is one difference.
    """
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for name in sorted(here.keys() | there.keys()):
            yield from differences(here.get(name), there.get(name), f"{path}.{name}" if path else name)
    elif here != there:
        yield Difference(path, here, there)


def brief(value: Any) -> Any:
    """A value as YAML has it; a mapping by its class."""
    if isinstance(value, Mapping):
        return str(value.get("_target_", "other settings")).rpartition(".")[2]
    return "null" if value is None else value
