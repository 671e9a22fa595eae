"""Checks settings against the signatures of their targets."""

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Any

from beartype.door import is_bearable
from hydra.utils import get_object

from rfdit.differences import walk
from rfdit.limits import limits, violations

# Arguments that the callers of `build` supply; YAML must not set them.
SUPPLIED = {"trainer": {"callbacks", "loggers"}}

# Settings of Lightning's Trainer, and what to write here instead.
FROM_LIGHTNING = {
    "trainer.callbacks": "callbacks.NAME=..., or +callbacks.NAME._target_=... for one of your own",
    "trainer.check_val_every_n_epoch": "trainer.val_every_n_steps=...",
    "trainer.ckpt_path": "ckpt=...",
    "trainer.default_root_dir": "run_dir=...",
    "trainer.enable_checkpointing": "callbacks.checkpoints=null for none",
    "trainer.enable_progress_bar": "callbacks.progress=null for none",
    "trainer.fast_dev_run": "debug=fast_dev_run",
    "trainer.limit_train_batches": "data.limit=... or debug=limit",
    "trainer.logger": "logger=default, logger=wandb or logger=[tensorboard,wandb]",
    "trainer.loggers": "logger=default, logger=wandb or logger=[tensorboard,wandb]",
    "trainer.max_epochs": "trainer.max_steps=...",
    "trainer.overfit_batches": "debug=overfit",
    "trainer.profiler": "profiler=torch",
    "trainer.strategy": "strategy=single, strategy=ddp or strategy=fsdp",
    "trainer.val_check_interval": "trainer.val_every_n_steps=...",
}

# Types in words.
KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "a truth value",
    list: "a list",
    dict: "a group of settings",
    NoneType: "null",
}
SEVERAL = {int: "whole numbers", float: "numbers", str: "texts", bool: "truth values"}

# Settings of a model that another group sets, and what leaves them out for a model that lacks them.
OF_OTHER_GROUPS = {
    "model.width": "size=none",
    "model.depth": "size=none",
    "model.num_heads": "size=none",
    "model.patch_size": "patch=none",
}


def root_problems(config: dict[str, Any], schema: Any) -> Iterator[str]:
    """A sentence about each setting of the root that is outside of the limits of its schema."""
    for name, hint in typing.get_type_hints(schema, include_extras=True).items():
        or_null = ", or null" if NoneType in typing.get_args(hint) else ""
        for words in violations(config.get(name), hint):
            yield f"{name}={config[name]} must be {words}{or_null}"


def near(name: str, known: Iterable[str]) -> str:
    """A hint at the name that may have been meant."""
    known = sorted(known)
    found = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {found[0]}?" if found else f"there are {', '.join(known)}"


def problems(config: dict[str, Any], unresolved: dict[str, Any]) -> Iterator[str]:
    """A sentence about each problem of a configuration's targets and their settings; some may be repeated.

    unresolved: the configuration before interpolation. A setting is named by the path at which the user
        sets it, which is where its value comes from.
    """

    def origin(path: str) -> str:
        return _origin(unresolved, path)

    for path, node in _targets(config):
        yield from _check(path, node, origin)


def _origin(unresolved: dict[str, Any], path: str) -> str:
    """The path from which ${...} brings a setting's value; the setting's own path without interpolation."""
    node: Any = unresolved
    parts = path.split(".")
    for i, part in enumerate(parts, 1):
        node = node.get(part) if isinstance(node, dict) else None
        link = re.fullmatch(r"\$\{(\w[\w.]*)\}", node) if isinstance(node, str) else None
        if link:
            return _origin(unresolved, ".".join([link[1], *parts[i:]]))
    return path


def _targets(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict with a `_target_`, with its path."""
    return ((path, node) for path, node in walk(config) if isinstance(node, dict) and "_target_" in node)


def _check(path: str, node: dict[str, Any], origin: Callable[[str], str]) -> Iterator[str]:
    """Sentences about one node: names that its target does not take, and names that it needs."""
    try:
        target = get_object(node["_target_"])
    except Exception:
        yield f"{origin(path)}._target_={node['_target_']} cannot be imported"
        return
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {name: value for name, value in node.items() if not (name.startswith("_") and name.endswith("_"))}
    supplied = SUPPLIED.get(path, set())
    for name in given:
        if (setting := f"{origin(path)}.{name}") in FROM_LIGHTNING and name in supplied | (
            given.keys() - parameters
        ):
            yield f"{setting} is not a setting; write {FROM_LIGHTNING[setting]}"
        elif name not in parameters and not open_ended:
            known = parameters.keys() - supplied
            group = OF_OTHER_GROUPS.get(setting)
            hint = f"write {group} to leave it to the model" if group else near(name, known)
            yield f"{setting} is not a setting of {target.__qualname__}; {hint}"
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
        if needed and name not in given and name not in supplied:
            yield f"{origin(path)}.{name} is not set; {target.__qualname__} needs it"
    yield from _check_values(path, target, given, origin)


def _check_values(
    path: str, target: Any, given: dict[str, Any], origin: Callable[[str], str]
) -> Iterator[str]:
    """Sentences about values of another type or range than the signature's; nested targets are nodes of their own."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
        limited = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a library's annotations may need names that exist only for its type checker
        return
    for name, value in given.items():
        if name not in hints or any(_targets(value)) or name in SUPPLIED.get(path, ()):
            continue
        setting, hint = origin(f"{path}.{name}"), hints[name]
        or_null = ", or null" if NoneType in typing.get_args(hint) else ""
        limited_list = isinstance(value, list) and any(limits(limited[name]))
        if not _is_a(value, hint) and not limited_list:
            if setting in FROM_LIGHTNING:
                yield f"{setting}={value} is not set there; write {FROM_LIGHTNING[setting]}"
                continue
            number = _number(value)
            instead = f"; write {number}" if number is not None and _is_a(number, hint) else ""
            yield f"{setting}={value!r} is {_kind(value)}, and it takes {_words(hint)}{instead}"
        else:
            for words in violations(value, limited[name]):
                yield f"{setting}={value} must be {words}{or_null}"


def _kind(value: Any) -> str:
    """What a value of YAML is, in words."""
    return KINDS.get(type(value), type(value).__name__)


def _number(value: Any) -> int | float | None:
    """The number that may be meant by 1e5, or by a text: 100k, or one with the characters of a word processor."""
    text = re.sub("[\N{MINUS SIGN}\N{EN DASH}]", "-", str(value)).strip("=“”„")
    found = re.fullmatch(r"(-?\d+\.?\d*(?:e-?\d+)?)([kKM]?)", text)
    if isinstance(value, bool) or found is None:
        return None
    number = float(found[1]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6}[found[2]]
    return int(number) if number.is_integer() else number


def _words(hint: Any) -> str:
    """An annotation in words."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return " or ".join(map(_words, typing.get_args(hint)))
    if hint is NoneType:
        return "null"
    if _is_list(hint):
        item = typing.get_args(hint)[0]
        return f"a list of {SEVERAL.get(item, _words(item))}"
    return "true or false" if hint is bool else KINDS.get(hint, str(hint))


def _is_list(hint: Any) -> bool:
    """True for annotations such as Sequence[float] and tuple[float, ...]."""
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    return bool(items) and (
        origin in (list, Sequence, Iterable) or (origin is tuple and items[-1] is Ellipsis)
    )


def _is_a(value: Any, hint: Any) -> bool:
    """True if a value from YAML fits an annotation; lists serve as tuples, and integers as floats."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else [hint]
    if isinstance(value, list) and (found := list(filter(_is_list, choices))):
        # beartype looks at one item, chosen at random.
        return any(all(_is_a(item, typing.get_args(choice)[0]) for item in value) for choice in found)
    forms = [value]
    if isinstance(value, int) and not isinstance(value, bool):
        forms.append(float(value))
    if isinstance(value, list):
        floats = [float(item) if type(item) is int else item for item in value]
        forms += [tuple(value), floats, tuple(floats)]
    return any(is_bearable(form, hint) for form in forms)
