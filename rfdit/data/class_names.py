"""Readable names of classes, and samples that carry them beside their numbers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rfdit.data.decode import SampleDecoder
from rfdit.data.sample import RawSample, Sample

FORMS = (
    'a text file with "n01440764 tench, Tinca tinca" on each line, a JSON object {"n01440764": "tench"}, or a '
    "JSON list in the order of the classes"
)


def read_class_names(path: str, *, setting: str, folders: Sequence[str] | None = None) -> list[str]:
    """The names in the order of the class numbers.

    path: a text file with a folder (an ImageNet wnid) and a name on each line, or JSON, either an
        object {folder: name} or a list of names.
    folders: of the classes, in order; names by folder are looked up by them, and without them the
        sorted folders are numbered, as ImageNet's classes are.
    Raises ValueError, naming `setting`, for another form, and for classes without a name.
    """
    names = _read(path, setting)
    if isinstance(names, dict):
        unnamed = [folder for folder in folders or () if folder not in names]
        if unnamed:
            raise ValueError(
                f"{setting}={path} names {len(names)} classes, and not {len(unnamed)} of the {len(folders or ())} "
                f"class folders, the first of them {unnamed[0]}"
            )
        return [names[folder] for folder in folders or sorted(names)]
    if folders is not None and len(names) != len(folders):
        raise ValueError(f"{setting}={path} has {len(names)} names for {len(folders)} class folders")
    return names


def _read(path: str, setting: str) -> list[str] | dict[str, str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{setting}={path} is no file; give {FORMS}")
    text = file.read_text(encoding="utf-8")
    if text.lstrip().startswith(("{", "[")):
        return _from_json(text, f"{setting}={path}")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    wrong = next((line[0] for line in lines if len(line) == 1), None)
    if wrong is not None or not lines:
        raise ValueError(f"{setting}={path} has {wrong or 'nothing'} without a name; give {FORMS}")
    return {folder: name.strip() for folder, name in lines}


def _from_json(text: str, given: str) -> list[str] | dict[str, str]:
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{given} is no JSON: {error}") from error
    values = list(names.values() if isinstance(names, dict) else names)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{given} does not name classes by strings; give {FORMS}")
    return names


class ClassDecoder:
    """Decodes image, class number and the class's name, which is the sample's caption.

    label_key: where the number is, as in `SampleDecoder`.
    names: file of names, as `read_class_names` takes it, for shards without any.
    caption_key: where the shards have the name, as in `SampleDecoder`. None with neither: no captions.
    num_classes: what the model knows, or None. A number beyond it stops the run, since not one of the
        samples may then have the label that it should; on a GPU it would be an unreadable error.

    Raises ValueError if names come from two places, or are not as many as the classes.
    """

    def __init__(
        self,
        *,
        label_key: str = "cls",
        names: str | None = None,
        caption_key: str | None = None,
        num_classes: int | None = None,
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
                f"data.decoder.names={names} has {len(self.names)} classes, and "
                f"conditioner.num_classes={num_classes}; give conditioner.num_classes={len(self.names)}"
            )
        self.num_classes = num_classes if self.names is None else len(self.names)

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Sample:
        """Raises SkippedSampleError as `SampleDecoder`, and ValueError for a class beyond the last."""
        sample = self.samples(raw, size)
        assert sample.label is not None
        if self.num_classes is not None and not 0 <= sample.label < self.num_classes:
            raise ValueError(
                f"data.shards: sample {sample.key} has the class {sample.label} in "
                f"data.decoder.label_key={self.samples.label_key}, and classes are 0 to {self.num_classes - 1} "
                f"(conditioner.num_classes={self.num_classes})"
            )
        return sample if self.names is None else replace(sample, caption=self.names[sample.label])

    def check(self, shards: Sequence[str], size: tuple[int, int]) -> None:
        """Any shards may hold what it decodes."""
