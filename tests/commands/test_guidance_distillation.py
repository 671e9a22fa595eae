"""Distilled guidance from the command line: kills, ranks, samples, exports, and what does not go together."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import rfdit
from rfdit.autoencoder.contract import LatentContract
from rfdit.checkpoint.saved_run import SavedRun, read_checkpoint
from rfdit.generate.teacher import FrozenTeacher
from tests.support.commands.command_line import FEW_SHAPES, TWENTY_STEPS, CommandLine, images
from tests.support.training.spread import FOUR, TWO, assert_close, curve, run
from tests.support.training.states import assert_equal, resumed_state, trained_state


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
def test_guidance_is_distilled(cli: CommandLine, tmp_path: Path) -> None:
    """Resumed and on two ranks it is the same run, whose checkpoints have one network."""
    teacher = run(tmp_path / "teacher", FOUR, *TWENTY_STEPS)
    distil = [
        "experiment=guidance_distillation", f"teacher.ckpt={teacher}", "trainer.max_steps=4", FEW_SHAPES,
        "schedule.total_steps=4",
    ]  # fmt: skip
    single = run(tmp_path / "single", *distil, FOUR)
    losses = curve(single)
    assert min(losses) > 0
    run(tmp_path / "parts", *distil, "trainer.max_steps=2", FOUR)
    run(tmp_path / "parts", *distil, "ckpt=last", FOUR)
    assert_equal(resumed_state(single), resumed_state(tmp_path / "parts"))
    for strategy in ("ddp", "fsdp"):
        two = run(tmp_path / strategy, *distil, f"strategy={strategy}", *TWO)
        assert curve(two) == pytest.approx(losses, rel=1e-5)
        assert_close(trained_state(two), trained_state(single))

    own, other = (read_checkpoint(folder / "checkpoints/last.ckpt") for folder in (single, teacher))
    added = {name for name in own.network if name not in other.network}
    assert {name.rpartition(".")[0] for name in added} == {
        "backbone.time.guidance.hidden", "backbone.time.guidance.out",
    }  # fmt: skip
    assert own.network.keys() - added == other.network.keys()

    fast = run(tmp_path / "fast", *distil, FOUR, "optimizer.lr=1e-2", "schedule.warmup_steps=0")
    request = [f"ckpt={fast}", "prompts=[a red circle]", "precision=fp32"]
    cli.sample(*request, "guidance=embedded", "guidance.scale=2", "out=two")
    cli.sample(*request, "guidance=embedded", "guidance.scale=6", "out=six")
    cli.sample(*request, "guidance=embedded", "+guidance@guidance.also=cfg", "out=both")
    assert not np.array_equal(images(Path("two")), images(Path("six")))
    assert cli.error("sample", *request, "out=refused").startswith("guidance would be applied twice")
    assert cli.error(
        "sample", f"ckpt={teacher}", *request[1:], "guidance=embedded", "out=refused"
    ).startswith("guidance=embedded needs a model that takes the scale")
    cli.export(f"ckpt={fast}", "out=exported")
    assert str(teacher) not in Path("exported/config.json").read_text()
    made = rfdit.load("exported", accelerator="cpu", precision="fp32")(
        "a red circle", steps=2, guidance_scale=2
    )
    assert np.array_equal(np.asarray(made[0]), images(Path("two"))[0])

    same = ["run_dir=wrong", "model.depth=1", "text_encoder.width=16", *distil, f"init.ckpt={teacher}"]
    for wrong, sentence in (
        (["conditioner.drop=0.1"], "conditioner.drop=0.1 drops conditions under which the teacher is asked"),
        ([f"teacher.ckpt={fast}"], f"teacher.ckpt={fast} takes the scale of guidance as an input"),
        (["teacher.weights=best"], "teacher."),
        (["teacher.ckpt=nowhere"], "teacher.ckpt=nowhere"),
        (["model.guidance=null"], "objective=guidance_distillation needs a model that takes the scale"),
    ):
        assert cli.error("train", *same, *wrong).startswith(sentence)


def test_a_teacher_is_needed(cli: CommandLine) -> None:
    assert cli.error("train", "objective=guidance_distillation", "model.guidance=3").startswith(
        "objective=guidance_distillation learns from another network; give teacher=weights teacher.ckpt=RUN"
    )


def test_a_teacher_knows_the_classes_of_the_run() -> None:
    """By their names, where both have them: the same numbers may stand for other classes."""
    contract = LatentContract("sd", 4, 8, 0.18215, 0.0)
    saved = Mock(spec=SavedRun, latents=contract.as_dict(), num_classes=2, class_names=["cat", "dog"])
    teacher = FrozenTeacher(ckpt="runs/one")
    for names in (["cat", "dog"], None):
        teacher._check(saved, contract, 2, names)
    with pytest.raises(
        ValueError, match=r"^teacher\.ckpt=runs/one .*: its class 0 is cat \(here dog\); give"
    ):
        teacher._check(saved, contract, 2, ["dog", "cat"])
