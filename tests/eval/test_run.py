"""What pictures are asked for, what they cost, and what is written of them."""

import json
from pathlib import Path

import pytest
import torch
from webdataset import TarWriter

from rfdit.conditioning import LabelConditioner, TextConditioner
from rfdit.config import build
from rfdit.eval.inputs import BalancedLabels, CaptionFile, RandomLabels, ShardCaptions, ShardLabels, Wanted
from rfdit.eval.records import EvaluationRecord, append_record, drop_after, read_records
from rfdit.eval.run import evaluations_per_picture
from rfdit.text_encoder.bpe import BPEEncoder
from tests.eval.test_protocol import PROTOCOL
from tests.test_config import composed

LABELS = LabelConditioner(num_classes=7, width=4)
TEXT = TextConditioner(encoder=BPEEncoder(width=4, length=8))


@pytest.mark.parametrize(
    ("overrides", "evaluations"),
    [
        (["guidance=none"], 5),
        (["guidance.scale=1"], 5),
        (["guidance=cfg"], 10),
        (["guidance.batched=false"], 10),
        (["sampler=heun"], 20),
        (["sampler=rk4", "guidance=none"], 20),
        (["sampler=sde", "guidance=none"], 5),
        (["guidance=interval", "guidance.low=0.3", "guidance.high=0.7"], 7),  # at t of 1, .8, .6, .4 and .2
        (["guidance=autoguidance", "guidance.guide.ckpt=not/loaded"], 10),
        (["sampler=dopri5"], None),
    ],
)
def test_evaluations_are_counted(overrides: list[str], evaluations: float | None) -> None:
    sampler = build(composed("sample", *overrides, "sampler.steps=5")["sampler"])
    assert evaluations_per_picture(sampler, (3, 4, 4)) == evaluations


@pytest.mark.parametrize("option", ["quick", "fid50k"])
def test_another_network_takes_inception_s_place(option: str) -> None:
    settings = ["network@eval.network=dinov2", "eval.network.weights=x", "eval.metrics.sfid=null"]
    named = ["+eval.metrics.fid.feature=cls", "+eval.metrics.fid.name=fd_dinov2"]
    node = composed("sample", f"eval={option}", *settings, *named)["eval"]
    assert isinstance(node, dict)
    assert node["network"]["_target_"] == "rfdit.eval.dinov2.DINOv2Features"
    (metric,) = (build(each) for each in node["metrics"].values() if each is not None)
    assert (metric.feature, metric.names) == ("cls", ("fd_dinov2",))


def test_balanced_labels_show_all_classes_as_often() -> None:
    wanted = BalancedLabels()(30, LABELS, seed=0)
    counts = torch.bincount(torch.tensor(wanted.inputs))
    assert counts.tolist() == [5, 5, 4, 4, 4, 4, 4]
    assert wanted.settings == {"name": "labels", "order": "balanced", "classes": 7}


def test_random_labels_depend_on_seed_and_number_alone() -> None:
    wanted = RandomLabels()(7000, LABELS, seed=0).inputs
    counts = torch.bincount(torch.tensor(wanted), minlength=7)
    assert float((counts - 1000).square().sum() / 1000) < 22.5  # chi-squared of 6 degrees, p = 0.001
    assert RandomLabels()(50, LABELS, seed=0).inputs == wanted[:50]
    assert RandomLabels()(50, LABELS, seed=1).inputs != wanted[:50]


def test_captions_of_a_file_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a dog\n\n a cat \n")
    wanted = CaptionFile(file=str(file))(5, TEXT, seed=0)
    assert wanted.inputs == ["a dog", "a cat", "a dog", "a cat", "a dog"]
    assert {k: wanted.settings[k] for k in ("name", "from", "different")} == {
        "name": "captions", "from": "captions.txt", "different": 2,
    }  # fmt: skip
    file.write_text("a dog\na cow\n")
    assert CaptionFile(file=str(file))(5, TEXT, seed=0).settings["sha256"] != wanted.settings["sha256"]


def shapes(samples: int, cache: Path) -> Wanted:
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


def test_labels_of_shards_are_found_in_json(tmp_path: Path) -> None:
    shards = labelled_shards(tmp_path, "json", [['{"label": 5}', '{"label": 1}']])
    settings = ["eval=quick", "eval/inputs=shard_labels", "eval.inputs.label_key=json.label"]
    node = composed("sample", *settings, f"eval.inputs.shards={tmp_path}", f"eval.inputs.cache={tmp_path}")
    assert isinstance(node["eval"], dict)
    inputs = build(node["eval"]["inputs"])
    assert inputs(2, LABELS, seed=0).inputs == [5, 1]
    with pytest.raises(ValueError, match=r"eval\.inputs\.shards: sample 0 has no label cls"):
        ShardLabels(shards=shards, cache=str(tmp_path))(2, LABELS, seed=0)
    few = LabelConditioner(num_classes=5, width=4)
    with pytest.raises(ValueError, match="there is the label 5, and this model knows 0 to 4"):
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
    with pytest.raises(ValueError, match=r"captions\.txt is no file; give one with a caption per line"):
        CaptionFile(file=str(file))(3, TEXT, seed=0)
    file.write_text("\n")
    with pytest.raises(ValueError, match="has no captions; give a file with one per line"):
        CaptionFile(file=str(file))(3, TEXT, seed=0)
    file.write_text("a dog")
    with pytest.raises(ValueError, match="asks for captions and this model was trained on class labels"):
        CaptionFile(file=str(file))(3, LABELS, seed=0)


def record(step: int) -> EvaluationRecord:
    values = {"fid": 12.345, "kid": 0.00123}
    return EvaluationRecord(
        name="quick", step=step, weights="ema", values=values, protocol=PROTOCOL, seconds=1.5
    )


def test_records_are_lines(tmp_path: Path) -> None:
    assert read_records(tmp_path / "run") == []
    assert drop_after(tmp_path / "run", 3) == 0
    for step in (1, 2):
        append_record(tmp_path / "run", record(step))
    lines = (tmp_path / "run/evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == read_records(tmp_path / "run")
    written = read_records(tmp_path / "run")[1]
    assert list(written) == ["name", "step", "weights", "values", "protocol", "seconds", "time"]
    assert written["protocol"] == PROTOCOL.as_dict()
    assert record(1).line == "quick: fid=12.35 kid=0.00123"


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    append_record(tmp_path, record(1))
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write('{"name": "quick", "st')
    assert [r["step"] for r in read_records(tmp_path)] == [1]
    append_record(tmp_path, record(2))
    assert [r["step"] for r in read_records(tmp_path)] == [1, 2]
    assert drop_after(tmp_path, 1) == 1
    assert [r["step"] for r in read_records(tmp_path)] == [1]
    append_record(tmp_path, record(3))
    assert (tmp_path / "evaluations.jsonl").read_text().count("\n") == 2
