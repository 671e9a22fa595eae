"""Every mistake ends in one sentence that names the setting, the value given and what is valid."""

import shutil
from pathlib import Path

import pytest
import torch

from rfdit.config.build import default_settings, register
from rfdit.config.signatures import FROM_LIGHTNING
from tests.support.commands.command_line import CommandLine
from tests.support.training.runs import Trained


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("trainer.profiler=torch", "profiler=torch"),
        ("+trainer.profiler=torch", "profiler=torch"),
        ("trainer.logger=false", "logger=default, logger=wandb or logger=[tensorboard,wandb]"),
        ("+trainer.callbacks=[]", "callbacks.NAME=..., or +callbacks.NAME._target_=... for one of your own"),
        ("trainer.max_epochs=3", "trainer.max_steps=..."),
    ],
)
def test_what_lightning_calls_otherwise(cli: CommandLine, override: str, instead: str) -> None:
    name = override.strip("+").partition("=")[0]
    assert cli.error("train", override) == f"{name} is not a setting; write {instead}"


def test_lightnings_strategy(cli: CommandLine) -> None:
    assert cli.error("train", "trainer.strategy=ddp") == (
        "trainer.strategy=ddp is not set there; write strategy=single, strategy=ddp or strategy=fsdp"
    )


def test_lightnings_names_lead_to_settings_that_there_are() -> None:
    """Lightning's own names are not settings here, except for interpolated ones."""
    register()
    settings = set(default_settings("train"))
    assert settings & FROM_LIGHTNING.keys() == {"trainer.strategy"}
    for instead in FROM_LIGHTNING.values():
        name = instead.partition("=")[0].removesuffix(".NAME")
        assert name in settings | {"debug", "profiler"}


def test_added_setting_of_a_group_is_refused(cli: CommandLine) -> None:
    message = cli.error("train", "+model.widht=3")
    assert message == "model.widht is not a setting of MMDiT; did you mean width?"


def test_wrong_types_are_reported_together(cli: CommandLine) -> None:
    message = cli.error("train", "data.batch_size=many", "optimizer.lr=fast")
    assert "data.batch_size='many' is a text, and it takes" in message
    assert "optimizer.lr='fast' is a text, and it takes a number" in message


def test_patch_that_does_not_divide(cli: CommandLine) -> None:
    message = cli.error("train", "model.patch_size=3")
    assert message == "model.patch_size=3 does not divide the latent size 32; use 2, 4 or 8"


def test_heads_that_do_not_divide(cli: CommandLine) -> None:
    assert cli.error("train", "model.num_heads=5") == "model.num_heads=5 does not divide model.width=24"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the setting names")
def test_no_gpu_where_one_was_asked_for(cli: CommandLine) -> None:
    message = cli.error("train", "trainer.accelerator=gpu")
    assert message.startswith("trainer.accelerator=gpu asks for a GPU and this machine has none")


def test_several_devices_need_a_strategy(cli: CommandLine) -> None:
    assert "use strategy=ddp" in cli.error("train", "trainer.devices=2")


def test_replicas_are_checked_before_ranks_start(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfdit.processes.launch.LocalRanks.start", lambda self: pytest.fail("started"))
    message = cli.error("train", "strategy=fsdp", "strategy.replicas=3", "trainer.devices=2")
    assert message == (
        "strategy.replicas=3 does not divide the 2 ranks (trainer.devices times trainer.num_nodes)"
    )


def test_unknown_precision(cli: CommandLine) -> None:
    assert cli.error("train", "trainer.precision=fp8") == (
        "trainer.precision=fp8 is unknown; use auto, bf16 or fp32"
    )


def test_shard_pattern_without_match(cli: CommandLine, tmp_path: Path) -> None:
    message = cli.error("train", "data=laion", "data.resolution=32", f"data.shards={tmp_path}/none-*.tar")
    assert "none-*.tar" in message
    assert "data.shards" in message


def test_resolution_that_the_autoencoder_cannot_halve(cli: CommandLine) -> None:
    message = cli.error(
        "train", "autoencoder=taesd", "data=laion", "data.shards=x.tar", "data.resolution=100"
    )
    assert message == "data.resolution=100 is not a multiple of autoencoder.downsampling=8"


def test_mmdit_needs_captions(cli: CommandLine) -> None:
    message = cli.error("train", "conditioner=labels", "conditioner.num_classes=3")
    assert message == "model=mmdit attends to caption tokens; use conditioner=text, or model=dit"


class TestCheckpoints:
    """Combinations of `ckpt` and `run_dir`."""

    @pytest.fixture
    def run(self, trained: Trained) -> Path:
        return trained().rename("first")

    def test_a_run_is_not_overwritten(self, cli: CommandLine, run: Path) -> None:
        assert cli.error("train", "run_dir=first") == (
            "run_dir=first holds a run already; give ckpt=last to resume it, or another run_dir"
        )

    def test_two_conflicting_checkpoints(self, cli: CommandLine, run: Path) -> None:
        shutil.copytree(run, "second")
        message = cli.error("train", "run_dir=second", "ckpt=first")
        assert "ckpt=first and run_dir=second are two conflicting checkpoints" in message

    def test_last_of_an_empty_run(self, cli: CommandLine) -> None:
        message = cli.error("train", "run_dir=empty", "ckpt=last")
        assert message == "ckpt=last means run_dir=empty, which has no checkpoints/last.ckpt"

    def test_another_architecture(self, cli: CommandLine, run: Path) -> None:
        message = cli.error("train", "run_dir=other", "ckpt=first", "model.depth=3", "model.patch_size=8")
        assert "belongs to another network" in message
        assert "model.depth=3 (there 2)" in message
        assert "model.patch_size=8 (there 4)" in message

    def test_another_autoencoder(self, cli: CommandLine, run: Path) -> None:
        raw = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        raw["rfdit"]["latents"] |= {"name": "sd", "scale": 0.18215}
        Path("sd").mkdir()
        torch.save(raw, "sd/only.ckpt")
        message = cli.error("train", "run_dir=other", "ckpt=sd")
        assert "the checkpoint was trained on latents of autoencoder=sd" in message
        assert "scale 0.18215 (here 1.0)" in message

    def test_several_checkpoints_in_a_folder(self, cli: CommandLine, run: Path) -> None:
        Path("folder").mkdir()
        for name in ("a.ckpt", "b.ckpt"):
            shutil.copy(run / "checkpoints/last.ckpt", Path("folder") / name)
        message = cli.error("sample", "ckpt=folder", "prompts=[a small red circle]")
        assert "ckpt=folder holds several checkpoints and no last.ckpt (a.ckpt, b.ckpt)" in message

    def test_damaged_checkpoint(self, cli: CommandLine, run: Path) -> None:
        data = (run / "checkpoints/last.ckpt").read_bytes()
        Path("cut.ckpt").write_bytes(data[: len(data) // 2])
        assert "ckpt=cut.ckpt cannot be read" in cli.error("sample", "ckpt=cut.ckpt", "prompts=[a]")

    def test_a_run_never_goes_on_from_a_flipped_byte(self, cli: CommandLine, run: Path) -> None:
        file = run / "checkpoints/last.ckpt"
        raw, data = torch.load(file, weights_only=True), bytearray(file.read_bytes())
        momentum = raw["optimizer_states"][0]["state"][0]["exp_avg"]
        data[data.index(momentum.numpy().tobytes()) + 7] ^= 0x40
        file.write_bytes(data)
        message = cli.error("train", "run_dir=first", "ckpt=last", "trainer.max_steps=6")
        assert message.startswith("ckpt=first/checkpoints/last.ckpt is damaged: archive/data/")
        assert message.endswith("take another checkpoint")
        assert file.read_bytes() == data  # to be looked at

    def test_pickle_with_code_is_never_run(self, cli: CommandLine) -> None:
        torch.save({"rfdit": _WritesAFile()}, "evil.ckpt")
        assert "which is never loaded" in cli.error("sample", "ckpt=evil.ckpt", "prompts=[a]")
        assert not Path("ran").exists()

    def test_foreign_checkpoint(self, cli: CommandLine) -> None:
        torch.save({"state_dict": {}}, "foreign.ckpt")
        message = cli.error("sample", "ckpt=foreign.ckpt", "prompts=[a]")
        assert message == "ckpt=foreign.ckpt was not written by rfdit's train.py"

    def test_no_checkpoint_names_the_newest_run(self, cli: CommandLine) -> None:
        cli.train("run_dir=outputs/mine")
        message = cli.error("sample", "prompts=[a]")
        assert message.endswith("the newest run here is ckpt=outputs/mine")

    def test_labels_for_a_model_of_captions(self, cli: CommandLine, run: Path) -> None:
        assert "was trained on captions" in cli.error("sample", "ckpt=first", "labels=[0]")

    def test_no_prompts(self, cli: CommandLine, run: Path) -> None:
        assert "prompts is not set" in cli.error("sample", "ckpt=first")

    def test_prompts_that_are_not_a_file(self, cli: CommandLine, run: Path) -> None:
        message = cli.error("sample", "ckpt=first", "prompts=a red circle")
        assert (
            message
            == "prompts=a red circle is not a file; for one prompt inline write 'prompts=[\"a red circle\"]'"
        )


class _WritesAFile:
    """An object that calls a function when it is unpickled, as a stranger's pickle may."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_fp8_without_hardware_for_it(cli: CommandLine) -> None:
    assert cli.error("train", "fp8=true") == (
        "fp8=true needs a GPU that multiplies FP8 (compute capability 8.9 or more), and this run is on cpu; "
        "use fp8=false"
    )


def test_a_setting_of_what_was_switched_off(cli: CommandLine) -> None:
    assert cli.error("train", "callbacks.grid=null", "callbacks.grid.count=2") == (
        "callbacks.grid.count is not a setting here, since another override has replaced the group that it belongs to"
    )
