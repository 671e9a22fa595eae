"""`sample.py eval=...`: the same numbers from any number of processes, killed or not."""

import os
import signal
from pathlib import Path

import pytest

from rfdit.eval.protocol import EvalProtocol
from rfdit.eval.records import read_records
from tests.support.commands.command_line import CommandLine
from tests.support.commands.processes import finish, start_sampling
from tests.support.evaluation.small_evaluation import tiny_eval, write_reference
from tests.support.training.checkpoints import write_checkpoint
from tests.support.waiting import wait_until

BASE = ["ckpt=run", "sampler.steps=2", "precision=fp32"]


@pytest.fixture
def reference(cli: CommandLine, tmp_path: Path) -> Path:
    """The reference for a checkpoint in a run folder of its own."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    write_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    return write_reference(tmp_path / "reference.npz")


def kept() -> list[Path]:
    return sorted(Path("run/evaluations").glob("*/*.safetensors"))


def test_what_is_kept_of_images_is_not_made_again(
    cli: CommandLine, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rfdit.eval.feature_evaluation import FeatureEvaluation

    monkeypatch.setattr("rfdit.generate.outputs.eval_files.IMAGES_PER_FILE", 8)
    evaluation = [*BASE, "batch_size=4", *tiny_eval(reference)]
    cli.sample(*evaluation)
    rows, seen = FeatureEvaluation.rows, []

    def counted(self: FeatureEvaluation, images: object, inputs: object) -> object:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(inputs)
        return rows(self, images, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureEvaluation, "rows", counted)
    with pytest.raises(SystemExit) as stopped:
        cli.sample(*evaluation)
    assert stopped.value.code == 130
    assert len(kept()) == 1  # a file is there whole or not at all
    seen.clear()
    with pytest.raises(SystemExit):
        cli.sample(*evaluation)
    assert len(kept()) == 2
    monkeypatch.setattr(FeatureEvaluation, "rows", rows)
    cli.sample(*evaluation)
    first, second = read_records(Path("run"))
    assert second["values"] == first["values"]
    assert kept() == []


def test_images_and_numbers_in_one_call(cli: CommandLine, reference: Path) -> None:
    printed = cli.sample(*BASE, *tiny_eval(reference, samples=5, inputs="shapes"), "eval.metrics.kid=null",
                         "prompts=[a red circle]", "out=out", "negative=a blue star")  # fmt: skip
    assert "1 image in out" in printed
    assert printed.strip().splitlines()[-1].startswith("quick: fid=")
    protocol = EvalProtocol.from_dict(read_records(Path("run"))[0]["protocol"])
    assert protocol.guidance == {"name": "ClassifierFree", "scale": 3.0, "negative": "a blue star"}


def test_labels_for_a_model_of_labels(cli: CommandLine, reference: Path) -> None:
    write_checkpoint(
        Path("labels.ckpt"),
        "model=dit",
        "conditioner=labels",
        "conditioner.num_classes=5",
        "text_encoder.width=12",
    )
    base = ["ckpt=labels.ckpt", "sampler.steps=1"]
    cli.sample(*base, *tiny_eval(reference, samples=12, inputs="random"))
    (found,) = read_records(Path())  # it lies in no run
    assert found["protocol"]["inputs"] == {"name": "labels", "order": "random", "classes": 5}
    message = cli.error("sample", *base, *tiny_eval(reference))
    assert message.startswith("eval.inputs asks for captions and this model was trained on class labels")
    message = cli.error("sample", *base, "eval=prompt_accuracy")
    assert message.startswith(
        "eval=prompt_accuracy asks for captions and this model was trained on class labels"
    )


def test_images_that_are_not_finite_have_no_number(cli: CommandLine, reference: Path) -> None:
    """Converted to bytes, they would be black."""
    message = cli.error("sample", *BASE, *tiny_eval(reference), "guidance.scale=1e38")
    assert message.startswith("22 of 22 images have values that are NaN or infinite, and cannot be used")
    assert not kept()
    assert read_records(Path("run")) == []


def test_another_resolution_than_the_references(cli: CommandLine, reference: Path) -> None:
    message = cli.error("sample", *BASE, *tiny_eval(reference), "resolution=64")
    assert message.startswith(
        "eval.reference has images of 32 x 32, and the evaluation has images of 64 x 64"
    )
    assert not Path("run/evaluations").exists()


@pytest.mark.slow
def test_any_number_of_processes_killed_or_not_gives_the_same_numbers(
    cli: CommandLine, reference: Path, tmp_path: Path
) -> None:
    evaluation = [*BASE, "batch_size=8", *tiny_eval(reference, samples=600)]
    cli.sample(*evaluation)
    finish(start_sampling(*evaluation, "devices=3", cwd=tmp_path))
    killed = start_sampling(*evaluation, "devices=2", cwd=tmp_path)
    try:
        wait_until(kept, killed)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate(timeout=120)
    assert kept()
    cli.sample(*evaluation)
    records = read_records(Path("run"))
    assert len(records) == 3
    assert all(record["values"] == records[0]["values"] for record in records)
    assert all(record["protocol"] == records[0]["protocol"] for record in records)


@pytest.mark.slow
def test_the_real_inception(cli: CommandLine, reference: Path, assets: Path) -> None:
    """FID and sFID of a few images, through the statistics of real ones that the reference command makes."""
    import sys
    from unittest.mock import patch

    import rfdit.commands.reference as command

    weights = assets / "inception/pt_inception-2015-12-05-nofc.pth"
    emoji = assets / "data/emoji/emoji-0007.tar"
    arguments = [
        "reference", "data=laion", f"data.shards={emoji}", "data.resolution=32", "count=24", "num_workers=0",
        f"network.weights={weights}", "out=emoji.npz", "accelerator=cpu",
    ]  # fmt: skip
    with patch.object(sys, "argv", arguments):
        command.main()
    cli.sample(
        *BASE, "eval=fid50k", "eval.samples=16", "eval/inputs=shards", f"eval.inputs.shards={emoji}",
        "eval.reference=emoji.npz", f"eval.network.weights={weights}", "batch_size=8",
    )  # fmt: skip
    (found,) = read_records(Path("run"))
    assert found["values"].keys() == {"fid", "sfid"}
    assert all(value > 1 for value in found["values"].values())
    assert found["protocol"]["features"]["name"] == "inception-2015-12-05"
    assert found["protocol"]["reference"]["images"] == 24
