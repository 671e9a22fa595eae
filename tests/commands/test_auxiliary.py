"""Runs with REPA: the network's own training, kills, ranks, stopping, and what is left of it in the weights."""

import math
from pathlib import Path

import pytest
import torch

import rfdit.commands.encode
from rfdit.checkpoint.saved_run import read_checkpoint
from tests.support.commands.command_line import CommandLine, metrics
from tests.support.training.spread import FOUR, TWO, assert_close, curve, run
from tests.support.training.states import assert_equal, resumed_state, trained_state

MODEL = "vit_small_patch14_dinov2"  # the smallest of timm's


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a run with a small teacher of random weights."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("teacher") / "vit.safetensors"
    save_file(timm.create_model(MODEL, img_size=28, num_classes=0).state_dict(), file)
    return [
        "auxiliary=repa", f"auxiliary.teacher.weights={file}", f"auxiliary.teacher.model={MODEL}",
        "auxiliary.teacher.image_size=28", "auxiliary.teacher.dtype=fp32", "auxiliary.projector.hidden=16",
        "auxiliary.block=1", "trainer.precision=fp32",
    ]  # fmt: skip


def test_it_is_trained_logged_and_left_out_of_the_weights(cli: CommandLine, teacher: list[str]) -> None:
    cli.train("run_dir=run", *teacher, "trainer.max_steps=8", "schedule.warmup_steps=0", "optimizer.lr=1e-2")
    rows = metrics(Path("run"))
    cosines = [float(row["train/auxiliary"]) for row in rows]
    assert sum(cosines[-3:]) / 3 < cosines[0] - 0.05  # towards agreement
    for row in rows:
        total = float(row["train/matching"]) + 0.5 * float(row["train/auxiliary"])
        assert float(row["train/loss"]) == pytest.approx(total, rel=1e-5)
    saved = read_checkpoint(Path("run/checkpoints/last.ckpt"))
    assert any(name.startswith("auxiliary.projector") for name in saved.network)
    assert not any(name.startswith("auxiliary") for name in (*saved.weights("raw"), *saved.weights("ema")))
    assert not any("teacher" in name for name in saved.network)
    cli.sample("ckpt=run", "prompts=[a red circle]", "sampler.steps=1", "accelerator=cpu", "out=images")
    assert list(Path("images").glob("*.png"))


def test_without_weight_it_changes_nothing(cli: CommandLine, teacher: list[str]) -> None:
    cli.train("run_dir=plain", "trainer.precision=fp32")
    cli.train("run_dir=with", *teacher, "auxiliary.coefficient=0")
    plain, other = (read_checkpoint(Path(run, "checkpoints/last.ckpt")) for run in ("plain", "with"))
    for weights in ("raw", "ema"):
        assert_equal(plain.weights(weights), other.weights(weights))


@pytest.mark.slow
def test_resume_is_bit_equal_through_the_stop(cli: CommandLine, teacher: list[str]) -> None:
    settings = [*teacher, "auxiliary.stop_step=3", "schedule.total_steps=4"]
    cli.train("run_dir=whole", "trainer.max_steps=4", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=2", *settings)
    cli.train("run_dir=parts", "trainer.max_steps=4", "ckpt=last", *settings)
    assert_equal(resumed_state(Path("whole")), resumed_state(Path("parts")))
    values = [float(row["train/auxiliary"]) for row in metrics(Path("whole"))]
    assert [math.isnan(value) for value in values] == [False, False, False, True]


def test_recomputed_blocks_give_the_same_states(cli: CommandLine, teacher: list[str]) -> None:
    cli.train("run_dir=plain", *teacher)
    cli.train("run_dir=recomputed", *teacher, "model.recompute=full")
    plain, other = (metrics(Path(run)) for run in ("plain", "recomputed"))
    assert [row["train/auxiliary"] for row in plain] == [row["train/auxiliary"] for row in other]


@pytest.mark.slow
def test_compiled_blocks_give_the_same_states(cli: CommandLine, teacher: list[str]) -> None:
    cli.train("run_dir=plain", *teacher)
    cli.train("run_dir=compiled", *teacher, "compile=true")
    plain, other = (metrics(Path(run)) for run in ("plain", "compiled"))
    for one, two in zip(plain, other):
        assert float(one["train/auxiliary"]) == pytest.approx(float(two["train/auxiliary"]), rel=1e-3)


def test_mistakes_end_in_a_sentence(cli: CommandLine, teacher: list[str]) -> None:
    assert cli.error("train", *teacher, "auxiliary.block=99").startswith(
        "auxiliary.block=99 is not one of the"
    )
    assert "no_such_model is not a model of timm" in cli.error(
        "train", *teacher, "auxiliary.teacher.model=no_such_model"
    )


@pytest.mark.slow
def test_cached_features_train_the_run_of_the_images(
    cli: CommandLine, teacher: list[str], emoji_shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = [setting for setting in teacher if setting.startswith("auxiliary.teacher")]
    data = [f"data.shards={emoji_shard}", "data.resolution=32"]
    encoding = ["batch_size=4", "num_workers=0", "accelerator=cpu", "autoencoder=identity"]
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # the tests' own stay
    monkeypatch.setattr(
        "sys.argv", ["encode", "out=cache", *data, *encoding, "auxiliary/teacher=dinov2", *network]
    )
    rfdit.commands.encode.main()
    cached = ["data=latents", "data.shards=cache", "data.resolution=32"]
    cli.train("run_dir=live", "data=laion", *data, *teacher)
    cli.train("run_dir=cached", *cached, *teacher)
    live, read = (metrics(Path(name)) for name in ("live", "cached"))
    for one, other in zip(live, read, strict=True):
        assert float(one["train/auxiliary"]) == pytest.approx(float(other["train/auxiliary"]), rel=1e-5)
        assert float(one["train/matching"]) == pytest.approx(float(other["train/matching"]), rel=1e-5)
    assert "do not fit this run: auxiliary.teacher.image_size=42 (the cache has 28)" in cli.error(
        "train", *cached, *teacher, "auxiliary.teacher.image_size=42"
    )
    cli.train("run_dir=without", *cached)


@pytest.mark.slow
def test_it_is_resumed_with_what_it_was_started_with(
    cli: CommandLine, teacher: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.train("run_dir=run", *teacher)
    more = ["run_dir=run", "ckpt=last", "trainer.max_steps=4"]
    begin = "ckpt=run/checkpoints/last.ckpt belongs to another network or optimizer: here auxiliary"
    assert cli.error("train", *more) == f"{begin}=null (there REPA)"
    assert cli.error("train", *more, *teacher, "auxiliary.projector.hidden=8") == (
        f"{begin}.projector.hidden=8 (there 16)"
    )
    assert cli.error("train", *more, *teacher, "auxiliary.block=2") == f"{begin}.block=2 (there 1)"
    cli.train(*more, *teacher, "auxiliary.coefficient=0.1", "auxiliary.stop_step=9")
    assert (
        "auxiliary.coefficient=0.1 (there 0.5); auxiliary.stop_step=9 (there null)" in capsys.readouterr().out
    )


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_shapes")
def test_two_ranks_train_the_run_of_one(teacher: list[str], tmp_path: Path) -> None:
    """Under DDP and FSDP, through the step from which on the projector is not used."""
    settings = [*teacher, "auxiliary.stop_step=3", "trainer.max_steps=5"]
    single = run(tmp_path / "single", FOUR, *settings)
    for name in ("ddp", "fsdp", "empty"):
        strategy = ["strategy=fsdp", "strategy.meta_init=true"] if name == "empty" else [f"strategy={name}"]
        folder = run(tmp_path / name, *strategy, *TWO, *settings)
        assert curve(folder) == pytest.approx(curve(single), rel=1e-5)
        assert_close(trained_state(folder), trained_state(single))
