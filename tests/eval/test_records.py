"""Records of evaluations, written and read as lines."""

import dataclasses
import json
import re
import warnings
from pathlib import Path

import pytest

from rfdit.eval.records import EvaluationRecord, append_record, drop_after, read_evaluations, read_records
from tests.support.evaluation.small_evaluation import PROTOCOL


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
    assert [json.loads(line) | {"checksum": None} for line in lines] == [
        record | {"checksum": None} for record in read_records(tmp_path / "run")
    ]
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


def test_a_changed_line_is_told_and_left_out(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        append_record(tmp_path, record(step))
    file = tmp_path / "evaluations.jsonl"
    first, second, third = file.read_text().splitlines()
    file.write_text(
        "\n".join([first, second.replace("12.345", "11.345"), third, "[1]", "{}}", '{"name": "own"}', ""])
    )
    with pytest.warns(
        UserWarning, match=r"evaluations\.jsonl is damaged or was edited: line 2, 4, 5 is not what"
    ):
        records = read_records(tmp_path)
    assert [each.get("step", each["name"]) for each in records] == [1, 3, "own"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"step": "ten"}, "its step is 'ten'"),
        ({"step": 1.5}, "its step is 1.5"),
        ({"step": True}, "its step is True"),
        ({"name": None}, "its name is None"),
        ({"values": {"fid": "12abc"}}, "its value of fid is '12abc'"),
        ({"values": {"fid": True}}, "its value of fid is True"),
        ({"values": {"fid": 10**400}}, "its value of fid is 1000"),
        ({"values": [1]}, "it is not the record of an evaluation (AttributeError"),
        ({"seconds": float("inf")}, "its seconds are inf"),
        ({"protocol": {}}, "a protocol has "),
        ({"protocol": 3}, "it is not the record of an evaluation (Type"),
        ({"more": 1}, "it is not the record of an evaluation (Type"),
    ],
)
def test_a_row_that_is_no_evaluation_is_told_by_its_line(
    change: dict[str, object], why: str, tmp_path: Path
) -> None:
    append_record(tmp_path, record(1))
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(record(2).as_dict() | change) + "\n")  # of another program, without a checksum
    append_record(tmp_path, record(3))
    with pytest.warns(UserWarning, match=re.escape(f"evaluations.jsonl: line 2 is left out: {why}")):
        assert [each.step for each in read_evaluations(tmp_path)] == [1, 3]
    assert drop_after(tmp_path, 1) <= 2


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    values = {"fid": float("nan"), "kid": 2.0, "is": float("inf")}
    append_record(tmp_path, dataclasses.replace(record(1), values=values))
    assert read_evaluations(tmp_path) == [
        dataclasses.replace(record(1), values={"kid": 2.0}, time=read_records(tmp_path)[0]["time"])
    ]


def test_damage_that_hides_a_line_is_told(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        append_record(tmp_path, record(step))
    file = tmp_path / "evaluations.jsonl"
    first, second, third = file.read_bytes().splitlines(keepends=True)
    for damaged, left in (
        (bytes(len(second) - 1) + b"\n", [1, 3]),
        (second[9:-4] + b"\n", [1, 3]),
        (second + second, [1, 2, 3]),  # once is enough
    ):
        file.write_bytes(first + damaged + third)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert [each["step"] for each in read_records(tmp_path)] == left
        assert [str(warning.message) for warning in warned if left == [1, 2, 3]] == []
        assert len(warned) == (left != [1, 2, 3])
