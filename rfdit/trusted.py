"""What a configuration that may come from anybody is allowed to build."""

import importlib
import inspect
from collections.abc import Collection, Iterator
from typing import Any


def check_targets(config: dict[str, Any], packages: Collection[str]) -> None:
    """Refuses a configuration that would run more than classes of the given packages.

    A `_target_` may name any function there is, `os.system` too, and an interpolation may read the
    environment; a configuration can come from anybody.
    Raises ValueError for the first target or interpolation that is not allowed.
    """
    for path, value in _leaves(config):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{path}={value} is an interpolation, which is not resolved in a model's config")
        if path.endswith("_target_") and not _is_class_of(value, packages):
            raise ValueError(
                f"{path}={value} is no class of {', '.join(sorted(packages))}, and nothing else is run from a "
                "model's config; packages=['rfdit', YOUR_PACKAGE] trusts another one"
            )


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested dicts and lists, with its path; a checkpoint's tuples would be built as lists."""
    several = isinstance(node, list | tuple)
    children = node.items() if isinstance(node, dict) else enumerate(node) if several else None
    if children is None:
        yield path, node
        return
    for name, child in children:
        yield from _leaves(child, f"{path}.{name}".lstrip("."))


def _is_class_of(target: Any, packages: Collection[str]) -> bool:
    module, _, name = str(target).rpartition(".")
    if module.partition(".")[0] not in packages:
        return False
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    # A module's own imports are its attributes as well.
    return inspect.isclass(found) and found.__module__.partition(".")[0] in packages
