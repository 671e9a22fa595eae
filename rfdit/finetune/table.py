"""The table of what a run has taken of the weights that it starts from."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from rfdit.counted import counted
from rfdit.finetune.matching import Fit

SHOWN = 5  # lines for each kind; the rest is a number


def table(fit: Fit) -> str:
    """Lines for what was taken, resized, left at its initial value, and not used; names without block numbers."""
    rows = [("taken", f"{counted(len(fit.taken), 'tensor')}, {fit.count(fit.taken):,} parameters")]
    rows += [("resized", line) for line in _lines(fit, fit.changed)]
    rows += [("initial", line) for line in _lines(fit, fit.initial)]
    rows += [("unused", line) for line in _lines(fit, fit.unused)]
    previous, text = None, []
    for kind, line in rows:
        text.append(f"  {'' if kind == previous else kind:<8} {line}")
        previous = kind
    return "\n".join(text)


def _lines(fit: Fit, reasons: Mapping[str, str]) -> Iterable[str]:
    """One line for each name without numbers and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in sorted(reasons.items()):
        groups.setdefault((re.sub(r"\.\d+\.", ".*.", name), reason), []).append(name)
    shown = list(groups.items())[:SHOWN]
    for (short, reason), names in shown:
        times = f" ({len(names)} tensors)" if len(names) > 1 else ""
        yield f"{short}{times}: {reason}"
    if rest := [name for _, names in list(groups.items())[SHOWN:] for name in names]:
        parts = Counter(".".join(name.split(".")[:2]) for name in rest)
        listed = ", ".join(f"{part} {count}" for part, count in parts.items())
        yield f"{counted(len(rest), 'more tensor')}: {listed}"
