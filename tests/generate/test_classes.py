"""Classes by number and by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from rfdit.checkpoint.saved_run import SavedRun
from rfdit.data.class_names import trained_class_names
from rfdit.generate.classes import class_names, read_labels

NAMES = ["tench, Tinca tinca", "crane", "golden retriever", "crane"]


def labels(given: Any, names: list[str] | None = NAMES) -> list[int]:
    return read_labels(given, num_classes=4, names=names)


def test_numbers_names_and_all() -> None:
    assert labels([2, "Tinca Tinca", "tench", "Golden Retriever", "3"]) == [2, 0, 0, 2, 3]
    assert labels("golden retriever") == [2]
    assert labels(1) == [1]
    assert labels("all") == [0, 1, 2, 3]
    assert labels([0], names=None) == [0]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([4], "labels: 4 is not a class of this model, whose classes are 0 to 3"),
        ([-1], "labels: -1 is not a class"),
        *(
            ([given], f"labels: {given} is not a class of this model, whose classes are 0 to 3")
            for given in (3.7, "3.7", True, None, float("nan"), -1e9, "9" * 30)
        ),
        (
            "golden retreiver",
            "labels: golden retreiver is not a class of this model; did you mean golden retriever",
        ),
        ("retriever", "did you mean golden retriever"),
        ("xylophone", "there are tench, Tinca tinca, crane, golden retriever and so on"),
        ("crane", "crane is the name of the classes 1, 3; give a number"),
        ([], "has no class"),
    ],
)
def test_invalid_classes(given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        labels(given)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match="the names of this model's classes are not known here; give class_names=FILE"
    ):
        labels("tench", names=None)


def config_of(num_classes: int = 2, **data: Any) -> dict[str, Any]:
    return {"conditioner": {"num_classes": num_classes}, "data": data}


def saved_with(names: list[str] | None, num_classes: int = 2, **data: Any) -> SavedRun:
    return SavedRun(Path("x.ckpt"), 1, config_of(num_classes, **data), {}, {}, {}, class_names=names)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"n2": "dog", "n1": "cat"}))
    return str(path)


class TestNamesThatTrainingPutsIntoItsCheckpoints:
    def test_the_decoders_file(self, file: str) -> None:
        assert trained_class_names(config_of(decoder={"names": file})) == ["cat", "dog"]

    def test_the_trees_folders(self, tmp_path: Path, file: str) -> None:
        tree = tmp_path / "tree"
        for name in ("n2", "n1", ".hidden"):
            (tree / name).mkdir(parents=True)
        reader = {"names": None}
        assert trained_class_names(config_of(reader=reader, shards=str(tree))) == ["n1", "n2"]
        assert trained_class_names(config_of(reader={"names": file}, shards=str(tree))) == ["cat", "dog"]

    def test_none(self, file: str) -> None:
        assert trained_class_names(config_of(shards="x.tar", reader={}, decoder={"names": None})) is None
        assert trained_class_names({"conditioner": {}, "data": {}}) is None  # of captions
        assert trained_class_names(config_of(3, decoder={"names": file})) is None  # which the decoder refuses


class TestNamesOfASavedModel:
    def test_the_checkpoint_carries_them(self) -> None:
        assert class_names(saved_with(["cat", "dog"])) == ["cat", "dog"]
        assert class_names(saved_with(["cat", "dog"], num_classes=3)) is None
        assert class_names(saved_with(None)) is None

    def test_a_file_that_is_given(self, file: str) -> None:
        assert class_names(saved_with(["a", "b"]), file) == ["cat", "dog"]
        with pytest.raises(ValueError, match=r"names\.json has 2 names, and the model has 3 classes"):
            class_names(saved_with(None, 3), file)
        with pytest.raises(ValueError, match=r"class_names=gone\.json is not a file"):
            class_names(saved_with(None), "gone.json")

    def test_no_file_that_its_configuration_names_is_opened(self, file: str, tmp_path: Path) -> None:
        (tmp_path / "tree/secret").mkdir(parents=True)
        (tmp_path / "tree/other").mkdir()
        for data in (
            {"decoder": {"names": file}},
            {"reader": {"names": file}},
            {"reader": {"names": None}, "shards": str(tmp_path / "tree")},
        ):
            assert class_names(saved_with(None, **data)) is None
