"""Classes by number and by name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rfdit.config import composed, register
from rfdit.sampling.classes import captions, class_names, read_labels

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
        ([4], "labels: 4 is no class of this model, whose classes are 0 to 3"),
        ([-1], "labels: -1 is no class"),
        (
            "golden retreiver",
            "labels: golden retreiver is no class of this model; did you mean golden retriever",
        ),
        ("retriever", "did you mean golden retriever"),
        ("xylophone", "there are tench, Tinca tinca, crane, golden retriever and so on"),
        ("crane", "crane is the name of the classes 1, 3; give a number"),
        ([], "names no class"),
    ],
)
def test_classes_that_are_none(given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        labels(given)


def test_names_that_nobody_knows() -> None:
    with pytest.raises(
        ValueError, match="the names of this model's classes are not known here; give class_names=FILE"
    ):
        labels("tench", names=None)


def trained(num_classes: int = 2, **data: Any) -> dict[str, Any]:
    return {"conditioner": {"num_classes": num_classes}, "data": data}


class TestWhereNamesComeFrom:
    @pytest.fixture
    def file(self, tmp_path: Path) -> str:
        path = tmp_path / "names.json"
        path.write_text(json.dumps({"n2": "dog", "n1": "cat"}))
        return str(path)

    def test_the_decoders_file(self, file: str) -> None:
        assert class_names(trained(decoder={"names": file})) == ["cat", "dog"]

    def test_the_trees_folders(self, tmp_path: Path, file: str) -> None:
        tree = tmp_path / "tree"
        for name in ("n2", "n1", ".hidden"):
            (tree / name).mkdir(parents=True)
        reader = {"names": None}
        assert class_names(trained(reader=reader, shards=str(tree))) == ["n1", "n2"]
        assert class_names(trained(reader={"names": file}, shards=str(tree))) == ["cat", "dog"]

    def test_a_file_that_is_given(self, file: str) -> None:
        assert class_names(trained(), file) == ["cat", "dog"]
        with pytest.raises(ValueError, match=r"names\.json has 2 names, and the model knows 3 classes"):
            class_names(trained(3), file)
        with pytest.raises(ValueError, match=r"class_names=gone\.json is no file"):
            class_names(trained(), "gone.json")

    def test_nowhere(self, file: str) -> None:
        assert class_names(trained(shards="x.tar", reader={}, decoder={"names": None})) is None
        assert class_names(trained(decoder={"names": "moved.json"})) is None
        assert class_names(trained(3, decoder={"names": file})) is None  # of another set of classes


def test_captions() -> None:
    assert captions([2, 0], NAMES) == ["2: golden retriever", "0: tench, Tinca tinca"]
    assert captions([2, 0], None) == ["2", "0"]


def test_the_run_in_the_documentation_composes() -> None:
    document = (Path(__file__).parents[2] / "docs/sampling.md").read_text()
    (words,) = re.findall(r"^python train\.py (.*)$", document, re.MULTILINE)
    register()
    config = composed("train", words.split())
    assert config["run_dir"] == "outputs/fashion"
    assert config["data"]["shards"] == "fashion"
