"""Settings against the signatures of their targets."""

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from types import NoneType, UnionType
from typing import Any

from beartype.door import is_bearable
from hydra.utils import get_object

from rfdit.limits import limits

# Arguments that `build`'s callers give, so that no YAML does.
SUPPLIED = {"trainer": {"callbacks", "loggers"}}

# What Lightning's Trainer takes, and what to write here.
FROM_LIGHTNING = {
    "trainer.callbacks": "callbacks.NAME=..., or +callbacks.NAME._target_=... for one of your own",
    "trainer.check_val_every_n_epoch": "trainer.val_every_n_steps=...",
    "trainer.ckpt_path": "ckpt=...",
    "trainer.default_root_dir": "run_dir=...",
    "trainer.enable_checkpointing": "callbacks.checkpoints=null for none",
    "trainer.enable_progress_bar": "callbacks.progress=null for none",
    "trainer.fast_dev_run": "trainer.max_steps=1",
    "trainer.limit_train_batches": "trainer.max_steps=...",
    "trainer.logger": "logger=default or logger=wandb",
    "trainer.loggers": "logger=default or logger=wandb",
    "trainer.max_epochs": "trainer.max_steps=...",
    "trainer.profiler": "profiler=torch",
    "trainer.strategy": "strategy=single, strategy=ddp or strategy=fsdp",
    "trainer.val_check_interval": "trainer.val_every_n_steps=...",
}


def near(name: str, known: Iterable[str]) -> str:
    """What may have been meant."""
    known = sorted(known)
    found = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {found[0]}?" if found else f"there are {', '.join(known)}"


def problems(config: dict[str, Any], unresolved: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the targets and their settings in a configuration, and in the same before ${...}.

    A setting is called what it has to be set by: where its value comes from. Sentences may be repeated.
    """

    def origin(path: str) -> str:
        return _origin(unresolved, path)

    for path, node in _targets(config):
        yield from _check(path, node, origin)


def _origin(unresolved: dict[str, Any], path: str) -> str:
    """The setting that has what ${...} brings to another; itself for any other."""
    node: Any = unresolved
    parts = path.split(".")
    for i, part in enumerate(parts, 1):
        node = node.get(part) if isinstance(node, dict) else None
        link = re.fullmatch(r"\$\{(\w[\w.]*)\}", node) if isinstance(node, str) else None
        if link:
            return _origin(unresolved, ".".join([link[1], *parts[i:]]))
    return path


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict with a `_target_`, with its path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for name, child in node.items():
            yield from _targets(child, f"{path}.{name}".lstrip("."))


def _check(path: str, node: dict[str, Any], origin: Callable[[str], str]) -> Iterator[str]:
    """The problems of one node with its target's signature."""
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
            yield f"{setting} is no setting; write {FROM_LIGHTNING[setting]}"
        elif name not in parameters and not open_ended:
            known = parameters.keys() - supplied
            yield f"{setting} is no setting of {target.__qualname__}; {near(name, known)}"
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
        if needed and name not in given and name not in supplied:
            yield f"{origin(path)}.{name} is not set; {target.__qualname__} needs it"
    yield from _check_values(path, target, given, origin)


def _check_values(
    path: str, target: Any, given: dict[str, Any], origin: Callable[[str], str]
) -> Iterator[str]:
    """Values that are not what the signature says; nested targets are checked as nodes."""
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
        if not _is_a(value, hint):
            if setting in FROM_LIGHTNING:
                yield f"{setting}={value} is not set there; write {FROM_LIGHTNING[setting]}"
                continue
            yield f"{setting}={value!r} is a {type(value).__name__}, and it takes {_words(hint)}"
        elif value is not None:
            or_null = ", or null" if NoneType in typing.get_args(hint) else ""
            for limit in limits(limited[name]):
                if not limit.holds(value):
                    yield f"{setting}={value} must be {limit.words}{or_null}"


def _words(hint: Any) -> str:
    """An annotation, to be read in a sentence."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return " or ".join(map(_words, typing.get_args(hint)))
    if hint is NoneType:
        return "null"
    return hint.__name__ if hint in (int, float, str, bool) else str(hint)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value from YAML will do for an annotation: lists are tuples as well, and integers floats."""
    forms = [value]
    if isinstance(value, int) and not isinstance(value, bool):
        forms.append(float(value))
    if isinstance(value, list):
        floats = [float(item) if type(item) is int else item for item in value]
        forms += [tuple(value), floats, tuple(floats)]
    return any(is_bearable(form, hint) for form in forms)
