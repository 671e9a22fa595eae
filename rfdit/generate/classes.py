"""Class labels by number or by name, as the training of the checkpoint knew them."""

import difflib
from collections.abc import Sequence
from typing import Any

from rfdit.checkpoint.saved_run import SavedRun
from rfdit.data.class_names import read_class_names
from rfdit.data.numbers import finite_number, whole_number


def class_names(saved: SavedRun, given: str | None = None) -> list[str] | None:
    """The names of a model's classes by number; None if they are not known.

    They are those that its checkpoint carries, and no file that its configuration names is opened.
    given: a file of the user's, whose names are used instead.
    Raises ValueError if `given` is not such a file, or has another number of classes.
    """
    num_classes = saved.num_classes
    if given is None:
        names = saved.class_names
        return names if names is not None and len(names) == num_classes else None
    names = read_class_names(given, setting="class_names")
    if len(names) != num_classes:
        raise ValueError(
            f"class_names={given} has {len(names)} names, and the model has {num_classes} classes"
        )
    return names


def read_labels(labels: Any, *, num_classes: int, names: Sequence[str] | None) -> list[int]:
    """Class numbers from a list of numbers and names, one of them alone, or `all`.

    A name is the whole of a class's name or one of its synonyms ("tench" of "tench, Tinca tinca").
    Raises ValueError for a class that does not exist, naming the near ones, and for an ambiguous name.
    """
    if labels == "all":
        return list(range(num_classes))
    given = labels if isinstance(labels, list) else [labels]
    if not given:
        raise ValueError("labels=[] has no class; give labels=[0,1], or labels=all")
    return [_number(label, num_classes, names) for label in given]


def _number(label: Any, num_classes: int, names: Sequence[str] | None) -> int:
    text = str(label).strip()
    # An entry that reads like a number is not a name: 3.7, true and NaN are not classes either.
    if not isinstance(label, str) or finite_number(label) is not None:
        number = whole_number(label, least=0, most=num_classes - 1)
        if number is not None:
            return number
        raise ValueError(
            f"labels: {text} is not a class of this model, whose classes are 0 to {num_classes - 1}"
        )
    if names is None:
        raise ValueError(
            f"labels: {text} is a name, and the names of this model's classes are not known here; give "
            "class_names=FILE, or numbers"
        )
    synonyms: dict[str, set[int]] = {}
    for number, name in enumerate(names):
        for part in {name, *name.split(",")}:
            synonyms.setdefault(part.strip().lower(), set()).add(number)
    found = sorted(synonyms.get(text.lower(), ()))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"labels: {text} is the name of the classes {', '.join(map(str, found))}; give a number"
        )
    near = difflib.get_close_matches(text.lower(), synonyms, n=3)
    near = near or [name for name in synonyms if text.lower() in name][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names[:3])} and so on"
    raise ValueError(f"labels: {text} is not a class of this model; {hint}")


def captions(labels: Sequence[int], names: Sequence[str] | None) -> list[str]:
    """The captions of classes on a sheet: "207: golden retriever", or the number alone."""
    return [str(label) if names is None else f"{label}: {names[label]}" for label in labels]
