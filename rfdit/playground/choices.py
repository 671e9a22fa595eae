"""The solvers and guidances that a visitor chooses from: those of conf/sampler and conf/guidance."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rfdit.config import CONFIG_DIR, composed


@dataclass(frozen=True)
class SolverChoice:
    """`sampler=NAME`, with the steps and the shift that its YAML begins with."""

    name: str
    about: str
    steps: int
    shift: float


@dataclass(frozen=True)
class GuidanceChoice:
    """`guidance=NAME`. setting: the path of its scale; None for one that has none."""

    name: str
    about: str
    setting: str | None
    scale: float | None


def solvers(leave_out: Collection[str]) -> list[SolverChoice]:
    """What conf/sampler has; the one that sample.py takes by default comes first."""
    return [
        SolverChoice(name, about, node["steps"], float(node["shift"]))
        for name, about, node in _options("sampler", leave_out)
    ]


def guidances(leave_out: Collection[str]) -> list[GuidanceChoice]:
    """What conf/guidance has; the one that sample.py takes by default comes first."""
    choices = []
    for name, about, node in _options("guidance", leave_out):
        setting, scale = _find_scale("guidance", node) or (None, None)
        choices.append(GuidanceChoice(name, about, setting, scale))
    return choices


def _options(group: str, leave_out: Collection[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, first comment, settings) of a group's options.

    leave_out: options that are not offered, as `group/name`. Nor are those that cannot be used without
        more settings, such as a second checkpoint.
    """
    default = composed("sample")[group]
    found = []
    for file in sorted((CONFIG_DIR / group).glob("*.yaml")):
        if f"{group}/{file.stem}" in leave_out:
            continue
        try:
            node = composed("sample", [f"{group}={file.stem}"])[group]
        except ValueError:
            continue
        first = file.read_text().partition("\n")[0]
        found.append((file.stem, first.removeprefix("#").strip() if first.startswith("#") else "", node))
    return iter(sorted(found, key=lambda option: option[2] != default))


def _find_scale(path: str, node: dict[str, Any]) -> tuple[str, float] | None:
    """The path and the value of a guidance's scale, or of one inside it."""
    if "scale" in node:
        return f"{path}.scale", float(node["scale"])
    inside = (_find_scale(f"{path}.{name}", child) for name, child in node.items() if isinstance(child, dict))
    return next((found for found in inside if found), None)
