"""Class labels by number or by name, as the checkpoint's own training knew them."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfdit.data.class_names import read_class_names
from rfdit.data.image_folder import class_folders


def class_names(config: Mapping[str, Any], given: str | None = None) -> list[str] | None:
    """The names of a training configuration's classes by number; None where nothing here tells.

    given: a file of names that is used instead, for a run whose own has moved.
    They come from the file that the decoder or the reader was given, or are the class folders' names.
    Raises ValueError if `given` is no such file, or names another number of classes.
    """
    num_classes, data = config["conditioner"]["num_classes"], config.get("data", {})
    names = None
    if given is not None:
        names = read_class_names(given, setting="class_names")
        if len(names) != num_classes:
            raise ValueError(
                f"class_names={given} has {len(names)} names, and the model knows {num_classes} classes"
            )
        return names
    reader, decoder = data.get("reader") or {}, data.get("decoder") or {}
    file, root = reader.get("names") or decoder.get("names"), data.get("shards")
    folders = None
    if "names" in reader and isinstance(root, str) and os.path.isdir(root):  # a tree of class folders
        folders = [os.fsdecode(folder) for folder in class_folders(root)]
    if file is None:
        names = folders
    elif Path(file).expanduser().is_file():
        names = read_class_names(file, setting="the run's class names", folders=folders)
    return names if names is not None and len(names) == num_classes else None


def read_labels(labels: Any, *, num_classes: int, names: Sequence[str] | None) -> list[int]:
    """Class numbers from a list of numbers and names, one of them alone, or `all`.

    A name is the whole of a class's name or one of its synonyms ("tench" of "tench, Tinca tinca").
    Raises ValueError for a class that does not exist, naming the near ones, and for an ambiguous name.
    """
    if labels == "all":
        return list(range(num_classes))
    given = labels if isinstance(labels, list) else [labels]
    if not given:
        raise ValueError("labels=[] names no class; give labels=[0,1], or labels=all")
    return [_number(label, num_classes, names) for label in given]


def _number(label: Any, num_classes: int, names: Sequence[str] | None) -> int:
    text = str(label).strip()
    if (isinstance(label, int) and not isinstance(label, bool)) or text.isdecimal():
        if 0 <= int(text) < num_classes:
            return int(text)
        raise ValueError(
            f"labels: {text} is no class of this model, whose classes are 0 to {num_classes - 1}"
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
    raise ValueError(f"labels: {text} is no class of this model; {hint}")


def captions(labels: Sequence[int], names: Sequence[str] | None) -> list[str]:
    """What is written below pictures of these classes: "207: golden retriever", or the number alone."""
    return [str(label) if names is None else f"{label}: {names[label]}" for label in labels]
