"""Readable class names, and a decoder that gives them to samples as captions."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rfdit.counted import counted
from rfdit.data.decode import SampleDecoder
from rfdit.data.image_files import readable
from rfdit.data.sample import RawSample, Sample
from rfdit.limits import Count
from rfdit.storage.text import parse_json, read_text, text_lines

FORMATS = (
    'a text file with "n01440764 tench, Tinca tinca" on each line (a tab ends a folder with spaces in it), a JSON '
    'object {"n01440764": "tench"}, or a JSON list in the order of the classes'
)


def read_class_names(path: str, *, setting: str, folders: Sequence[str] | None = None) -> list[str]:
    """The class names in the order of the class numbers.

    path: a text file with a folder (an ImageNet wnid) and a name on each line, or JSON, either an
        object {folder: name} or a list of names. A folder ends at the first space, unless it is one of
        `folders` that has spaces itself, or a tab follows it.
    folders: the classes' folders, in order. Names by folder are given in this order; without it, in the order
        of the sorted folders, as ImageNet's classes are numbered.
    Raises ValueError, naming `setting`, for another format, and for classes without a name.
    """
    names = _read(path, setting, folders or ())
    if isinstance(names, dict):
        unnamed = [folder for folder in folders or () if folder not in names]
        if unnamed:
            raise ValueError(
                f"{setting}={path} has no name for {len(unnamed)} of the {len(folders or ())} class folders, the "
                f"first of them {unnamed[0]}"
            )
        return [names[folder] for folder in folders or sorted(names)]
    if folders is not None and len(names) != len(folders):
        raise ValueError(
            f"{setting}={path} has {counted(len(names), 'name')} for {counted(len(folders), 'class folder')}"
        )
    return names


def class_folders(root: str) -> list[bytes]:
    """The folders directly below the root, in the order of their class numbers."""
    with os.scandir(os.fsencode(root)) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(b".") and entry.is_dir())


def trained_class_names(config: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes that a training configuration is about to train, by number; None without any.

    They are in the file that its decoder or reader is given, or are the names of its class folders. These files
    are opened, so the configuration must be the user's own; its checkpoints carry the names.
    """
    data, num_classes = config.get("data") or {}, config["conditioner"].get("num_classes")
    reader, decoder = data.get("reader") or {}, data.get("decoder") or {}
    root, folders = data.get("shards"), None
    if "names" in reader and isinstance(root, str) and os.path.isdir(os.path.expanduser(root)):
        folders = [readable(folder) for folder in class_folders(os.path.expanduser(root))]
    names = folders
    for part, node in (("reader", reader), ("decoder", decoder)):
        if node.get("names") is not None:
            names = read_class_names(node["names"], setting=f"data.{part}.names", folders=folders)
            break
    return names if names is not None and len(names) == num_classes else None


def _read(path: str, setting: str, folders: Sequence[str]) -> list[str] | dict[str, str]:
    text = read_text(path, setting=setting, wanted=FORMATS)
    if text.lstrip().startswith(("{", "[")):
        return _from_json(text, f"{setting}={path}")
    spaced = sorted((f"{folder} " for folder in folders if " " in folder), key=len, reverse=True)
    lines = [_divided(line, spaced) for line in text_lines(text)]
    wrong = next((line[0] for line in lines if len(line) == 1), None)
    if wrong is not None or not lines:
        raise ValueError(f"{setting}={path} has {wrong or 'nothing'} without a name; give {FORMATS}")
    return dict(lines)


def _divided(line: str, spaced: Sequence[str]) -> list[str]:
    """Folder and name of a line. spaced: the folders with spaces in them, each with one after it, longest first."""
    if known := next((folder for folder in spaced if line.startswith(folder)), None):
        return [known[:-1], line[len(known) :].strip()]
    return [part.strip() for part in line.split("\t" if "\t" in line else None, maxsplit=1)]


def _from_json(text: str, given: str) -> list[str] | dict[str, str]:
    try:
        names = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{given} {error}") from None
    values = list(names.values() if isinstance(names, dict) else names)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{given} does not name classes by strings; give {FORMATS}")
    return names


class ClassDecoder:
    """Decodes the image, the class number, and the class name as the sample's caption.

    label_key: key of the number, as in `SampleDecoder`.
    names: file of names, as for `read_class_names`; for shards without names.
    caption_key: key of the name in the shards, as in `SampleDecoder`. Without both there are no captions.
    num_classes: number of classes of the model; None is not checked. A larger number stops the run: the
        labels of all samples may be wrong then, and a GPU's error would be unreadable.

    Raises ValueError if names come from two places, or their number is not that of the classes.
    """

    def __init__(
        self,
        *,
        label_key: str = "cls",
        names: str | None = None,
        caption_key: str | None = None,
        num_classes: Count | None = None,
    ) -> None:
        if names is not None and caption_key is not None:
            raise ValueError(
                f"data.decoder.names={names} and data.decoder.caption_key={caption_key} are both set; "
                "class names come from one of them"
            )
        self.samples = SampleDecoder(caption_key=caption_key, label_key=label_key)
        self.names = None if names is None else read_class_names(names, setting="data.decoder.names")
        if self.names is not None and num_classes not in (None, len(self.names)):
            raise ValueError(
                f"data.decoder.names={names} has {counted(len(self.names), 'class', 'classes')}, and "
                f"conditioner.num_classes={num_classes}; give conditioner.num_classes={len(self.names)}"
            )
        self.num_classes = num_classes if self.names is None else len(self.names)

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Sample:
        """Raises SkippedSampleError as `SampleDecoder`, and ValueError for a class that the model does not know."""
        sample = self.samples(raw, size)
        assert sample.label is not None
        if self.num_classes is not None and not 0 <= sample.label < self.num_classes:
            raise ValueError(
                f"data.shards: sample {sample.key} has the class {sample.label} in "
                f"data.decoder.label_key={self.samples.label_key}, and classes are 0 to {self.num_classes - 1} "
                f"(conditioner.num_classes={self.num_classes})"
            )
        return sample if self.names is None else replace(sample, caption=self.names[sample.label])
