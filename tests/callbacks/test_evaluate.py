"""Evaluation during training: it changes nothing, and says what it measured and how."""

import json
import signal
from pathlib import Path

import pytest

from rfdit.eval.protocol import EvalProtocol
from rfdit.eval.records import read_records
from tests.command_line import CommandLine, metrics
from tests.eval.small_evaluation import tiny_eval, write_reference
from tests.test_fault_drill import assert_same, state

STEPS = [
    "trainer.max_steps=6",
    "schedule.warmup_steps=0",
    "optimizer.lr=1e-2",
    "callbacks.checkpoints.every_n_steps=2",
]
EVERY = ["callbacks.evaluate.every_n_steps=2", "callbacks.evaluate.batch_size=8", "sampler.steps=2"]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return write_reference(tmp_path / "reference.npz")


def curve(run: str, column: str = "train/loss") -> list[str]:
    return [row[column] for row in metrics(Path(run))]


def test_a_run_with_evaluations_is_the_run_without(cli: CommandLine, reference: Path) -> None:
    cli.train("run_dir=without", *STEPS)
    cli.train("run_dir=with", *STEPS, *EVERY, *tiny_eval(reference))
    assert len(set(curve("without"))) == 6
    assert curve("with") == curve("without")
    assert_same(state(Path("with")), state(Path("without")))
    assert read_records(Path("without")) == []

    records = read_records(Path("with"))
    assert [record["step"] for record in records] == [2, 4, 6]
    assert {record["name"] for record in records} == {"quick"}
    assert records[0]["values"].keys() == {"fid", "kid", "kid_std", "precision", "recall"}
    assert len({record["values"]["fid"] for record in records}) == 3
    # In metrics.csv they stand beside the loss of the step that has just been taken.
    logged = {int(row["step"]) + 1: row["eval/fid"] for row in metrics(Path("with")) if row["eval/fid"]}
    assert {step: float(value) for step, value in logged.items()} == pytest.approx(
        {record["step"]: record["values"]["fid"] for record in records}
    )

    protocol = EvalProtocol.from_dict(records[0]["protocol"])
    assert all(EvalProtocol.from_dict(r["protocol"]) == protocol for r in records)
    assert (protocol.samples, protocol.image_size, protocol.steps, protocol.evaluations) == (
        22,
        [32, 32],
        2,
        4,
    )
    assert protocol.guidance == {"name": "ClassifierFree", "scale": 3.0}
    assert protocol.sampler["solver"] == {"name": "Euler"}
    assert protocol.reference["sha256"] == "e" * 64
    assert protocol.features["sha256"] == "f" * 64
    assert protocol.inputs["name"] == "captions"
    assert protocol.weights["name"] == records[0]["weights"] == "ema"
    assert protocol.weights["decay"] == 0.9999

    # sample.py says the same of the last checkpoint.
    printed = cli.sample("ckpt=with", "batch_size=8", *tiny_eval(reference))
    last = read_records(Path("with"))[-1]
    assert len(read_records(Path("with"))) == 4
    assert EvalProtocol.from_dict(last["protocol"]).differences(protocol) == []
    assert last["step"] == 6
    assert last["values"] == pytest.approx(records[-1]["values"], rel=1e-6)
    lines = printed.strip().splitlines()
    assert lines[-1].startswith(f"quick: fid={records[-1]['values']['fid']:.3g}"[:14])
    assert lines[-2] == str(protocol)
    assert not list(Path("with/evaluations").iterdir())  # what was kept of the pictures is gone


def test_a_resumed_run_supersedes_what_it_does_again(cli: CommandLine, reference: Path) -> None:
    overrides = [*STEPS, *EVERY, *tiny_eval(reference), "callbacks.checkpoints.every_n_steps=3"]
    cli.train("run_dir=run", *overrides, "trainer.max_steps=3")
    cli.train("run_dir=whole", *overrides)
    before = read_records(Path("run"))
    assert [record["step"] for record in before] == [2, 3]
    # A later record, as a run leaves it that was killed before its next checkpoint.
    with Path("run/evaluations.jsonl").open("a") as file:
        file.write(json.dumps(before[0] | {"step": 4, "values": {"fid": -1.0}}) + "\n" + '{"name": "qui')
    cli.train("run_dir=run", *overrides, "ckpt=last")
    records = read_records(Path("run"))
    assert [record["step"] for record in records] == [2, 3, 4, 6]
    assert records[:2] == before
    whole = {record["step"]: record["values"] for record in read_records(Path("whole"))}
    assert [record["values"] for record in records if record["step"] != 3] == list(whole.values())


def test_one_that_takes_too_long_is_not_recorded(
    cli: CommandLine, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.train("run_dir=run", *STEPS, *EVERY, *tiny_eval(reference), "callbacks.evaluate.max_minutes=1e-9")
    told = [line for line in capsys.readouterr().out.splitlines() if "quick was stopped" in line]
    assert len(told) == 1
    assert told[0].startswith(
        "step 2  quick was stopped after 0 of 22 pictures, with nothing recorded, by callbacks"
    )
    assert read_records(Path("run")) == []
    assert len(curve("run")) == 6
    assert "eval/fid" not in metrics(Path("run"))[0]


def test_a_signal_ends_an_evaluation_and_then_the_run(
    cli: CommandLine, reference: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rfdit.eval.generation import GenerationMetrics

    rows, seen = GenerationMetrics.rows, []

    def interrupted(self: GenerationMetrics, images: object, inputs: object) -> object:
        seen.append(len(seen))
        if len(seen) == 2:
            signal.raise_signal(signal.SIGTERM)
        return rows(self, images, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(GenerationMetrics, "rows", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.train("run_dir=run", *STEPS, *EVERY, *tiny_eval(reference))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert (
        "quick was stopped after 16 of 22 pictures, with nothing recorded, by a signal"
        in capsys.readouterr().out
    )
    assert read_records(Path("run")) == []
    assert Path("run/checkpoints/last.ckpt").exists()


def test_its_time_is_no_training_time(
    cli: CommandLine, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rfdit.callbacks import Throughput

    left_out: list[float] = []
    monkeypatch.setattr(Throughput, "leave_out", lambda self, seconds: left_out.append(seconds))
    throughput = "+callbacks.throughput={_target_: rfdit.callbacks.Throughput, every_n_steps: 2}"
    cli.train("run_dir=run", *STEPS, *EVERY, *tiny_eval(reference), "~callbacks.throughput", throughput)
    taken = [record["seconds"] for record in read_records(Path("run"))]
    assert len(left_out) == 3
    assert all(out >= seconds for out, seconds in zip(left_out, taken))
