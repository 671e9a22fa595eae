"""Evaluation during training: it changes nothing, and says what it measured and how."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from rfdit.eval.protocol import EvalProtocol
from rfdit.eval.records import read_records
from tests.support.commands.command_line import FAST, CommandLine, metrics
from tests.support.evaluation.small_evaluation import tiny_eval, write_reference
from tests.support.training.spread import train
from tests.support.training.states import assert_equal, trained_state

pytestmark = pytest.mark.usefixtures("drawn_shapes")
STEPS = [
    "trainer.max_steps=4", "schedule=constant", "schedule.warmup_steps=0", "optimizer.lr=1e-2", "text_encoder.width=8",
    "callbacks.checkpoints.every_n_steps=1", "data.shards.samples=64", "data.val_shards=null", "trainer.precision=fp32",
]  # fmt: skip
EVERY = ["callbacks.evaluate.every_n_steps=2", "callbacks.evaluate.batch_size=8", "sampler.steps=2"]


def run(folder: Path, *overrides: str) -> Path:
    train([f"run_dir={folder}", *FAST, *STEPS, *overrides])
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tmp_path_factory.mktemp("reference") / "reference.npz")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> Path:
    """A folder with a run of four steps, `without` evaluations and `with` two of them."""
    folder = tmp_path_factory.mktemp("evaluate")
    run(folder / "without")
    run(folder / "with", *EVERY, *tiny_eval(reference))
    return folder


def curve(folder: Path, column: str = "train/loss") -> list[str]:
    return [row[column] for row in metrics(folder)]


def protocols(folder: Path) -> list[EvalProtocol]:
    return [EvalProtocol.from_dict(record["protocol"]) for record in read_records(folder)]


def test_a_run_with_evaluations_is_the_run_without(runs: Path) -> None:
    assert len(set(curve(runs / "without"))) == 4
    assert curve(runs / "with") == curve(runs / "without")
    assert_equal(trained_state(runs / "with"), trained_state(runs / "without"))
    assert read_records(runs / "without") == []


def test_numbers_are_recorded_and_logged(runs: Path) -> None:
    records = read_records(runs / "with")
    assert [record["step"] for record in records] == [2, 4]
    assert {(record["name"], record["weights"]) for record in records} == {("quick", "ema")}
    assert records[0]["values"].keys() == {"fid", "kid", "kid_std", "precision", "recall"}
    assert records[0]["values"]["fid"] != records[1]["values"]["fid"]
    # In metrics.csv they stand beside the loss of the step that has just been taken.
    logged = {int(row["step"]) + 1: row["eval/fid"] for row in metrics(runs / "with") if row["eval/fid"]}
    assert {step: float(value) for step, value in logged.items()} == pytest.approx(
        {record["step"]: record["values"]["fid"] for record in records}
    )


def test_the_protocol_says_what_was_done(runs: Path) -> None:
    protocol, other = protocols(runs / "with")
    assert protocol == other
    assert (protocol.samples, protocol.image_size, protocol.seed) == (22, [32, 32], 0)
    assert (protocol.steps, protocol.evaluations, protocol.precision) == (2, 4, "fp32")
    assert protocol.guidance == {"name": "ClassifierFree", "scale": 3.0}
    assert protocol.sampler["solver"] == {"name": "Euler"}
    assert (protocol.reference["sha256"], protocol.features["sha256"]) == ("e" * 64, "f" * 64)
    assert protocol.inputs["name"] == "captions"
    assert (protocol.weights["name"], protocol.weights["decay"]) == ("ema", 0.9999)
    assert protocol.metrics["kid"]["subset_size"] == 10


def test_sample_py_measures_the_same_of_the_last_checkpoint(
    cli: CommandLine, runs: Path, reference: Path
) -> None:
    shutil.copytree(runs / "with", "run")
    base = ["ckpt=run", "batch_size=8", "precision=fp32"]
    printed = cli.sample(*base, *tiny_eval(reference))
    *trained, last = read_records(Path("run"))
    assert len(trained) == 2
    assert protocols(Path("run"))[2].differences(protocols(Path("run"))[1]) == []
    assert last["step"] == 4
    assert last["values"] == pytest.approx(trained[1]["values"], rel=1e-6)
    lines = printed.strip().splitlines()
    assert lines[-2] == str(protocols(Path("run"))[2])
    assert lines[-1].startswith("quick: fid=")
    assert not list(Path("run/evaluations").iterdir())  # what was kept of the images is gone
    # Other weights and another seed are another protocol.
    cli.sample(*base, *tiny_eval(reference), "weights=raw", "seed=3")
    names = [
        line.partition("=")[0] for line in protocols(Path("run"))[3].differences(protocols(Path("run"))[2])
    ]
    assert names == ["seed", "weights.decay", "weights.name", "weights.profile", "weights.warmup"]


def test_a_resumed_run_supersedes_what_it_does_again(cli: CommandLine, runs: Path, reference: Path) -> None:
    part = run(Path.cwd() / "part", *EVERY, *tiny_eval(reference), "trainer.max_steps=3")
    before = read_records(part)
    assert [record["step"] for record in before] == [2, 3]
    # What a run leaves that was killed before its next checkpoint.
    with (part / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(before[0] | {"step": 4, "values": {"fid": -1.0}}) + "\n" + '{"name": "qui')
    run(part, *EVERY, *tiny_eval(reference), "ckpt=last")
    records = read_records(part)
    assert [record["step"] for record in records] == [2, 3, 4]
    assert records[:2] == before
    assert records[2]["values"] == read_records(runs / "with")[1]["values"]


def test_one_that_takes_too_long_is_not_recorded(
    cli: CommandLine, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.train("run_dir=run", *STEPS, *EVERY, *tiny_eval(reference), "callbacks.evaluate.max_minutes=1e-9")
    told = [line for line in capsys.readouterr().out.splitlines() if "quick was stopped" in line]
    assert len(told) == 1
    assert told[0].startswith(
        "step 2  quick was stopped after 0 of 22 images, with nothing recorded, by callbacks"
    )
    assert read_records(Path("run")) == []
    assert len(curve(Path("run"))) == 4
    assert "eval/fid" not in metrics(Path("run"))[0]


def test_a_signal_ends_an_evaluation_and_then_the_run(
    cli: CommandLine, reference: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rfdit.eval.feature_evaluation import FeatureEvaluation

    rows, seen = FeatureEvaluation.rows, []

    def interrupted(self: FeatureEvaluation, images: object, inputs: object) -> object:
        seen.append(len(seen))
        if len(seen) == 2:
            signal.raise_signal(signal.SIGTERM)
        return rows(self, images, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureEvaluation, "rows", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.train("run_dir=run", *STEPS, *EVERY, *tiny_eval(reference))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert (
        "quick was stopped after 16 of 22 images, with nothing recorded, by a signal"
        in capsys.readouterr().out
    )
    assert read_records(Path("run")) == []
    assert Path("run/checkpoints/last.ckpt").exists()


def test_its_time_is_not_training_time(
    cli: CommandLine, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rfdit.callbacks import Throughput

    left_out: list[float] = []
    monkeypatch.setattr(Throughput, "leave_out", lambda self, seconds: left_out.append(seconds))
    throughput = "callbacks.throughput={_target_: rfdit.callbacks.Throughput, every_n_steps: 2}"
    cli.train("run_dir=run", *STEPS, *EVERY, *tiny_eval(reference), throughput)
    taken = [record["seconds"] for record in read_records(Path("run"))]
    assert len(left_out) == 2
    assert all(out >= seconds for out, seconds in zip(left_out, taken, strict=True))


def test_what_does_not_fit_is_said_before_training(cli: CommandLine, reference: Path) -> None:
    def error(*overrides: str) -> str:
        return cli.error("train", "run_dir=run", *STEPS, *overrides)

    tiny = tiny_eval(reference)
    small = write_reference(reference.with_name("small.npz"), image_size=(16, 16))
    few = write_reference(reference.with_name("few.npz"), images=12)
    messages = {
        error(*tiny_eval("missing.npz")): "eval.reference=missing.npz is not a file; rfdit reference",
        error(*tiny_eval(small)): "eval.reference has images of 16 x 16, and the evaluation has images of 32",
        error(
            *tiny_eval(reference, inputs="balanced")
        ): "eval/inputs=balanced asks for class labels and this model was",
        error(*tiny_eval(reference, samples=0)): "eval.samples=0 must be at least 1",
        error(*tiny_eval(reference, samples=9)): "eval.samples=9 is too few for kid, which needs at least 10",
        error(
            *tiny, "eval.metrics.kid.subset_size=20", "eval.samples=50", "eval.reference=" + str(few)
        ): "kid.subset_size=20 is more than the 12 reference images; give fewer",
        error(
            *tiny, "callbacks.evaluate.every_n_steps=0"
        ): "callbacks.evaluate.every_n_steps=0 must be at least 1",
        error(
            *tiny, "callbacks.evaluate.max_minutes=0"
        ): "callbacks.evaluate.max_minutes=0 must be more than 0",
        error(
            *tiny, "+eval.sample=3"
        ): "eval.sample is not a setting of FeatureEvaluation; did you mean samples?",
        error(
            *tiny, "eval.reference=null"
        ): "eval.reference is not set, and fid compares with one; make one with rfdit reference",
    }
    for message, expected in messages.items():
        assert message.startswith(expected)
    assert not Path("run/config.yaml").exists()


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(runs: Path, reference: Path) -> None:
    """Equal to the bit from the same weights, with which training goes on only before the first evaluation."""
    evaluation = [*EVERY, *tiny_eval(reference), "trainer.max_steps=2", "optimizer.lr=0"]
    (theirs,) = read_records(run(runs / "one", *evaluation))
    for strategy in ("ddp", "fsdp"):
        two = [f"strategy={strategy}", "trainer.devices=2", "data.batch_size=2"]
        (mine,) = read_records(run(runs / strategy, *evaluation, *two))
        assert mine["values"] == theirs["values"]
        assert mine["protocol"] == theirs["protocol"]
