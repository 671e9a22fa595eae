"""Labels and captions of evaluations."""

from pathlib import Path

import pytest
import torch
from webdataset import TarWriter

from rfdit.conditioning import LabelConditioner, TextConditioner
from rfdit.config.build import build
from rfdit.data.class_names import read_class_names
from rfdit.eval.inputs import (
    BalancedLabels,
    CaptionFile,
    ChosenInputs,
    RandomLabels,
    ShardCaptions,
    ShardLabels,
)
from rfdit.generate.request import read_prompts
from rfdit.text_encoder.bpe import BPEEncoder
from tests.support.commands.composing import composed

LABELS = LabelConditioner(num_classes=7, width=4)
TEXT = TextConditioner(encoder=BPEEncoder(width=4, length=8))


def test_balanced_labels_show_all_classes_as_often() -> None:
    chosen = BalancedLabels()(30, LABELS, seed=0)
    counts = torch.bincount(torch.tensor(chosen.inputs))
    assert counts.tolist() == [5, 5, 4, 4, 4, 4, 4]
    assert chosen.settings == {"name": "labels", "order": "balanced", "classes": 7}


def test_random_labels_depend_on_seed_and_number_alone() -> None:
    chosen = RandomLabels()(7000, LABELS, seed=0).inputs
    counts = torch.bincount(torch.tensor(chosen), minlength=7)
    assert float((counts - 1000).square().sum() / 1000) < 22.5  # chi-squared of 6 degrees, p = 0.001
    assert RandomLabels()(50, LABELS, seed=0).inputs == chosen[:50]
    assert RandomLabels()(50, LABELS, seed=1).inputs != chosen[:50]


def test_captions_of_a_file_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a dog\n\n a cat \n")
    chosen = CaptionFile(file=str(file))(5, TEXT, seed=0)
    assert chosen.inputs == ["a dog", "a cat", "a dog", "a cat", "a dog"]
    assert {k: chosen.settings[k] for k in ("name", "from", "different")} == {
        "name": "captions", "from": "captions.txt", "different": 2,
    }  # fmt: skip
    file.write_text("a dog\na cow\n")
    assert CaptionFile(file=str(file))(5, TEXT, seed=0).settings["sha256"] != chosen.settings["sha256"]


def test_prompts_captions_and_class_names_are_read_alike(tmp_path: Path) -> None:
    """From files as Notepad saves them, with lines that hold other characters than line ends."""
    lines = ["n01 a\x0bb\x0cc\x85d\u2028e", "n02 ein Kätzchen 🐱"]
    file = tmp_path / "text.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes("\r\n\n".join(lines).encode(encoding))
        assert CaptionFile(file=str(file))(2, TEXT, seed=0).inputs == lines
        assert read_prompts(str(file)) == lines
        assert read_class_names(str(file), setting="names") == [line[4:] for line in lines]


def shapes(samples: int, cache: Path) -> ChosenInputs:
    settings = ["eval=quick", "eval/inputs=shapes", "eval.inputs.shards.samples=6"]
    node = composed("sample", *settings, f"eval.inputs.shards.cache={cache}")["eval"]
    assert isinstance(node, dict)
    inputs = build(node["inputs"] | {"cache": str(cache)})
    assert isinstance(inputs, ShardCaptions)
    return inputs(samples, TEXT, seed=0)


def test_captions_of_shards_come_in_their_order(tmp_path: Path) -> None:
    few, many = shapes(4, tmp_path), shapes(9, tmp_path)
    assert len(set(many.inputs)) > 3
    assert many.inputs[:4] == few.inputs
    assert many.inputs[6:] == many.inputs[:3]


def labelled_shards(folder: Path, extension: str, labels: list[list[str]]) -> list[str]:
    """A tar for each list, with a sample for each label."""
    for number, shard in enumerate(labels):
        with TarWriter(str(folder / f"{number}.tar"), encoder=False) as tar:
            for i, label in enumerate(shard):
                tar.write({"__key__": f"{i:03d}", extension: label.encode()})
    return [str(folder / f"{number}.tar") for number in range(len(labels))]


def test_labels_of_shards_come_in_their_order(tmp_path: Path) -> None:
    shards = labelled_shards(tmp_path, "cls", [["3", "0", "6"], ["3"]])
    inputs = ShardLabels(shards=shards, cache=str(tmp_path / "cache"))
    assert inputs(3, LABELS, seed=0).inputs == [3, 0, 6]
    many = inputs(9, LABELS, seed=0)
    assert many.inputs == [3, 0, 6, 3, 3, 0, 6, 3, 3]
    assert {k: many.settings[k] for k in ("name", "order", "classes")} == {
        "name": "labels", "order": "shards", "classes": 7,
    }  # fmt: skip
    assert inputs(9, LABELS, seed=1) == many
    assert inputs(8, LABELS, seed=0).settings["sha256"] != many.settings["sha256"]


def test_samples_that_training_leaves_out_are_left_out(tmp_path: Path) -> None:
    labels, cache = labelled_shards(tmp_path, "cls", [["3", "", "cat", "0", "6"]]), str(tmp_path / "cache")
    inputs = ShardLabels(shards=labels, cache=cache)
    with pytest.warns(UserWarning, match=r"^eval\.inputs\.shards: left out: 2 label_not_a_class_number$"):
        assert inputs(3, LABELS, seed=0).inputs == [3, 0, 6]
    captions = labelled_shards(tmp_path, "txt", [["a cat", " ", "a dog"]])
    with pytest.warns(UserWarning, match=r"left out: 1 empty_caption$"):
        assert ShardCaptions(shards=captions, cache=cache)(3, TEXT, seed=0).inputs == [
            "a cat",
            "a dog",
            "a cat",
        ]


def test_labels_of_shards_are_found_in_json(tmp_path: Path) -> None:
    shards = labelled_shards(tmp_path, "json", [['{"label": 5}', '{"label": 1}']])
    settings = ["eval=quick", "eval/inputs=shard_labels", "eval.inputs.label_key=json.label"]
    node = composed("sample", *settings, f"eval.inputs.shards={tmp_path}", f"eval.inputs.cache={tmp_path}")
    assert isinstance(node["eval"], dict)
    inputs = build(node["eval"]["inputs"])
    assert inputs(2, LABELS, seed=0).inputs == [5, 1]
    with pytest.raises(
        ValueError,
        match=r"eval\.inputs\.shards: no sample of .*0\.tar .* label at cls: 2 missing_label; the first: .* json$",
    ):
        ShardLabels(shards=shards, cache=str(tmp_path))(2, LABELS, seed=0)
    few = LabelConditioner(num_classes=5, width=4)
    with pytest.raises(ValueError, match="the label 5 occurs, and this model knows 0 to 4"):
        inputs(2, few, seed=0)
    with pytest.raises(ValueError, match="shard_labels asks for class labels and this model was trained on"):
        inputs(2, TEXT, seed=0)


def test_inputs_that_a_model_does_not_know_are_refused(tmp_path: Path) -> None:
    for inputs in (BalancedLabels(), RandomLabels()):
        with pytest.raises(
            ValueError, match="asks for class labels and this model was trained on captions; give"
        ):
            inputs(3, TEXT, seed=0)
    file = tmp_path / "captions.txt"
    with pytest.raises(
        ValueError, match=r"captions\.txt is not a file; give a text file with one caption per line"
    ):
        CaptionFile(file=str(file))(3, TEXT, seed=0)
    file.write_text("\n")
    with pytest.raises(ValueError, match="has no captions; give a file with one per line"):
        CaptionFile(file=str(file))(3, TEXT, seed=0)
    file.write_text("a dog")
    with pytest.raises(ValueError, match="asks for captions and this model was trained on class labels"):
        CaptionFile(file=str(file))(3, LABELS, seed=0)
