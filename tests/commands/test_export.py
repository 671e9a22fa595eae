"""rfdit export and rfdit.load, from a run to the same images."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import rfdit
from rfdit.checkpoint.saved_run import read_checkpoint, read_raw
from rfdit.checkpoint.sharded import write_sharded
from rfdit.interchange.folder import read_folder
from rfdit.sampler import Heun
from tests.support.commands.command_line import CommandLine
from tests.support.servers.hub import empty_snapshot
from tests.support.training.checkpoints import LABELS, MakeCheckpoint, forge, write_checkpoint

PROMPTS = ["a small red circle", "a large blue star"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose average is not its weights."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder


def read_images(folder: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("0*.png"))]


def same(made: list[Image.Image], files: list[np.ndarray]) -> bool:
    return len(made) == len(files) and all(np.array_equal(np.asarray(a), b) for a, b in zip(made, files))


def test_the_folder_holds_the_average_and_how_to_build_it(cli: CommandLine, run: Path) -> None:
    printed = cli.export(f"ckpt={run}", "out=out")
    assert printed == f"weights=ema of {run}/checkpoints/last.ckpt at step 7 are in out\n"
    assert sorted(p.name for p in Path("out").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    saved = read_checkpoint(run / "checkpoints/last.ckpt")
    state = load_file("out/model.safetensors")
    assert state.keys() == saved.ema["ema"].keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.ema["ema"].items())
    description = json.loads(Path("out/config.json").read_text())
    assert description["latents"] == saved.latents
    assert description["config"]["model"] == saved.config["model"]
    assert description["step"] == 7


def test_a_flipped_byte_of_exported_weights_is_noticed(cli: CommandLine, run: Path) -> None:
    cli.export(f"ckpt={run}", "out=out")
    whole = Path("out/model.safetensors").read_bytes()
    Path("out/model.safetensors").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(ValueError, match=r"out is damaged: its model\.safetensors differs from its checksum"):
        rfdit.load("out")


def test_places_and_addresses_stay_at_home(cli: CommandLine, run: Path) -> None:
    cli.export(f"ckpt={run}", "out=out")
    written = Path("out/config.json").read_text() + Path("out/README.md").read_text()
    assert "run_dir" not in written
    assert "data" not in json.loads(Path("out/config.json").read_text())["config"]


@pytest.mark.parametrize("source", ["someone/taesd", "/home/me/taesd", "mine/taesd"])
def test_the_name_of_an_encoder_is_exported_and_its_folder_is_not(
    cli: CommandLine, checkpoint: MakeCheckpoint, source: str
) -> None:
    Path("mine/taesd").mkdir(parents=True)
    saved = checkpoint("autoencoder=taesd", f"autoencoder.source={source}", "data.resolution=64")
    cli.export(f"ckpt={saved.path}", "out=out")
    assert (source in Path("out/config.json").read_text()) == (source == "someone/taesd")
    if source == "/home/me/taesd":
        with pytest.raises(
            ValueError, match=r"^out: autoencoder\.source is not set; DiffusersAutoencoder needs"
        ):
            rfdit.load("out")
        with pytest.raises(OSError, match=r"^autoencoder\.source=\./there: there is no such folder"):
            rfdit.load("out", autoencoder="./there")


def test_load_makes_the_images_of_sample(cli: CommandLine, run: Path) -> None:
    cli.export(f"ckpt={run}", "out=out")
    cli.sample(f"ckpt={run}", f"prompts=[{','.join(PROMPTS)}]", "seed=5", "guidance.scale=2", "out=images")
    for source in (run, str(run / "checkpoints/last.ckpt"), "out"):
        model = rfdit.load(source, accelerator="cpu")
        assert same(model(PROMPTS, steps=2, guidance_scale=2, seed=5), read_images("images"))


def test_a_trained_run_travels(cli: CommandLine) -> None:
    few = ["data.shards.samples=64", "data.shards.shards=1", "data.val_shards.samples=8"]
    cli.train("run_dir=run", "trainer.max_steps=2", "schedule.warmup_steps=0", *few)
    cli.export("ckpt=run", "out=out")
    (image,) = rfdit.load("out", accelerator="cpu")(PROMPTS[0], steps=2)
    assert np.array_equal(image, rfdit.load("run", accelerator="cpu")(PROMPTS[0], steps=2)[0])


def test_shards_become_one_file(cli: CommandLine, run: Path) -> None:
    """A checkpoint as strategy=fsdp writes it, here by one rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        raw = read_raw(run / "checkpoints/last.ckpt")
        Path("sharded").mkdir()
        write_sharded(raw, Path("sharded/last.ckpt"), Path("sharded/last.00000007.abc.shards"))
    finally:
        torch.distributed.destroy_process_group()
    cli.export("ckpt=sharded", "out=out", "weights=raw")
    state = load_file("out/model.safetensors")
    saved = read_checkpoint(run / "checkpoints/last.ckpt")
    assert state.keys() == saved.network.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.network.items())


def test_one_caption_is_one_image(run: Path) -> None:
    model = rfdit.load(run, accelerator="cpu")
    (alone,) = model(PROMPTS[0], steps=2)
    assert (alone.size, alone.mode) == ((32, 32), "RGB")
    assert not np.array_equal(alone, model(PROMPTS[0], steps=2, seed=1)[0])
    assert not np.array_equal(alone, model(PROMPTS[0], steps=2, solver=Heun())[0])
    assert not np.array_equal(alone, model(PROMPTS[0], steps=2, shift=3.0)[0])
    assert not np.array_equal(alone, model(PROMPTS[0], steps=2, negative=PROMPTS[1])[0])
    # Earlier calls left nothing behind, and an image of several is the one made alone.
    assert np.array_equal(alone, model(PROMPTS[0], steps=2)[0])
    second = model(PROMPTS, steps=2)[1]
    assert (
        np.abs(np.asarray(second, int) - np.asarray(model(PROMPTS[1], steps=2, first_key=1)[0], int)).max()
        <= 1
    )


def test_raw_weights(cli: CommandLine, run: Path) -> None:
    cli.export(f"ckpt={run}", "out=raw", "weights=raw")
    raw, average = rfdit.load("raw", accelerator="cpu"), rfdit.load(run, accelerator="cpu")
    assert not np.array_equal(raw(PROMPTS[0], steps=2)[0], average(PROMPTS[0], steps=2)[0])
    assert np.array_equal(
        raw(PROMPTS[0], steps=2)[0],
        rfdit.load(run, weights="raw", accelerator="cpu")(PROMPTS[0], steps=2)[0],
    )


def test_guidance_where_the_run_had_none(checkpoint: MakeCheckpoint, run: Path) -> None:
    path = checkpoint("guidance=none").path
    plain, guided = (rfdit.load(source, accelerator="cpu") for source in (path, run))
    assert np.array_equal(plain(PROMPTS[0], steps=2)[0], guided(PROMPTS[0], steps=2, guidance_scale=1)[0])
    assert np.array_equal(plain(PROMPTS[0], steps=2, guidance_scale=3)[0], guided(PROMPTS[0], steps=2)[0])


@pytest.mark.slow
def test_the_scale_is_that_of_the_guidance_inside_an_interval(checkpoint: MakeCheckpoint) -> None:
    limited = rfdit.load(checkpoint("guidance=interval", "guidance.high=0.6").path, accelerator="cpu")
    always = rfdit.load(checkpoint("guidance=cfg").path, accelerator="cpu")
    made = [
        [model(PROMPTS[0], steps=2, guidance_scale=scale)[0] for scale in (1, 8)]
        for model in (limited, always)
    ]
    assert np.array_equal(made[0][0], made[1][0])  # a scale of 1 is none, wherever it holds
    assert not np.array_equal(made[0][1], made[0][0])
    assert not np.array_equal(made[0][1], made[1][1])


def test_labels(cli: CommandLine, checkpoint: MakeCheckpoint) -> None:
    run = checkpoint(*LABELS).path
    cli.export(f"ckpt={run}", "out=out")
    cli.sample(f"ckpt={run}", "labels=[2,0]", "out=images")
    model = rfdit.load("out", accelerator="cpu")
    assert same(model([2, 0], steps=2), read_images("images"))
    with pytest.raises(
        ValueError, match="was trained on class labels; inputs=\\['a cat'\\] is not one of them"
    ):
        model("a cat")
    with pytest.raises(ValueError, match="class labels; negative='blur' is not one of them"):
        model(1, negative="blur")


def test_wrong_input_is_one_sentence(cli: CommandLine, run: Path) -> None:
    model = rfdit.load(run, accelerator="cpu")
    with pytest.raises(ValueError, match="trained on captions; inputs=\\[3\\] is not one of them"):
        model(3)
    with pytest.raises(ValueError, match=r"inputs=\[\] is empty"):
        model([])
    with pytest.raises(ValueError, match=r"sampler.steps=0 must be at least 1"):
        model(PROMPTS, steps=0)


def test_export_refuses_in_one_sentence(cli: CommandLine, run: Path) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    assert cli.error("export", f"ckpt={run}", "out=full") == (
        "out=full exists and is not empty; name another folder, or remove it"
    )
    assert cli.error("export", f"ckpt={run}", "out=o", "format=onnx") == (
        "format=onnx is unknown; use safetensors, diffusers, peft, diffusers_lora"
    )
    assert f"weights=power_05 is not in ckpt={run}" in cli.error(
        "export", f"ckpt={run}", "out=o", "weights=power_05"
    )
    assert cli.error("export", f"ckpt={run}") == "out is not set; give out=..."
    assert cli.error("export", "out=o", "chkpt=run") == "chkpt is not a setting; did you mean ckpt?"
    assert not Path("o").exists()


def test_a_folder_and_a_checkpoint_run_no_code(cli: CommandLine, run: Path, tmp_path: Path) -> None:
    """`rfdit.checkpoint.registry` refuses what they name; its tests have all the ways to name something."""
    cli.export(f"ckpt={run}", "out=out")
    raw, bad = (
        read_raw(run / "checkpoints/last.ckpt"),
        {"_target_": "os.mkdir", "path": str(tmp_path / "made")},
    )
    forge(Path("out"), autoencoder=bad)
    torch.save(
        raw | {"rfdit": raw["rfdit"] | {"config": raw["rfdit"]["config"] | {"sampler": bad}}}, "bad.ckpt"
    )
    for source, group in (("out", "autoencoder"), ("bad.ckpt", "sampler")):
        with pytest.raises(
            ValueError, match=rf"^{source}: {group}\._target_=os\.mkdir is not a part of a model"
        ):
            rfdit.load(source)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("found", "changed"),
    [
        ('"scale": 1.0', '"scale": 5.0'),
        ('"num_heads": 2', '"num_heads": 3'),
        ('"positions": "sincos"', '"positions": "sinc?s"'),
        ('"in_channels"', '"in_cHannels"'),
        ('"step": 7', '"step": 8'),
        ('"sha256"', '"sha257"'),
    ],
)
def test_a_changed_byte_of_the_settings_is_noticed(
    cli: CommandLine, run: Path, found: str, changed: str
) -> None:
    cli.export(f"ckpt={run}", "out=out")
    file = Path("out/config.json")
    assert found in file.read_text()
    file.write_text(file.read_text().replace(found, changed, 1))
    with pytest.raises(
        ValueError, match=r"^out is damaged: its config\.json differs from its checksum; copy or"
    ):
        rfdit.load("out")


def test_a_package_may_be_trusted(cli: CommandLine, run: Path) -> None:
    cli.export(f"ckpt={run}", "out=out")
    model = json.loads(Path("out/config.json").read_text())["config"]["model"]
    forge(Path("out"), model=model | {"attention": {"_target_": f"{__name__}.OwnAttention"}})
    with pytest.raises(
        ValueError, match=r"model.attention._target_=\S+ is not a part of a model that rfdit knows"
    ):
        rfdit.load("out")
    assert rfdit.load("out", packages=["tests"], accelerator="cpu")(PROMPTS[0], steps=1)


class OwnAttention:
    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return v


@pytest.mark.parametrize("damage", ["cut", "missing", "json"])
def test_a_damaged_folder_is_one_sentence(cli: CommandLine, run: Path, damage: str) -> None:
    cli.export(f"ckpt={run}", "out=out")
    file = Path("out/model.safetensors")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "missing":
        file.unlink()
    else:
        Path("out/config.json").write_text('{"format": "rfdit-1"}')
    with pytest.raises(
        ValueError, match=r"^out (is damaged|cannot be read as a model that rfdit exported): "
    ):
        rfdit.load("out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda raw: raw.pop("state_dict"),
            "bad.ckpt is damaged: it lacks a part of a checkpoint ('state_dict')",
        ),
        (
            lambda raw: raw["rfdit"].update(config={}),
            "bad.ckpt is damaged: its configuration has no model, prediction, cond",
        ),
        (
            lambda raw: raw["rfdit"]["config"].pop("autoencoder"),
            "is damaged: its configuration has no autoencoder",
        ),
        (
            lambda raw: raw["rfdit"]["config"].pop("text_encoder"),
            "is damaged: its configuration has no text_encoder",
        ),
        (
            lambda raw: raw["rfdit"]["config"]["model"].update(width=torch.ones(1)),
            "bad.ckpt is damaged: config.model.width is a Tensor, and settings are text",
        ),
        (
            lambda raw: raw["rfdit"]["config"]["model"].update(in_channels="x"),
            "is damaged: model.in_channels is not a number of channels",
        ),
        (
            lambda raw: raw["rfdit"]["config"]["model"].update(input_size="x"),
            "is damaged: model.input_size=x must be one side",
        ),
        (
            lambda raw: raw["rfdit"]["latents"].update(scale="x", more=1),
            "is damaged: its latent space has fields that are missing, unknown or of a wrong type: more, scale",
        ),
        (lambda raw: raw["rfdit"].update(config=3), "is damaged: its config is a int, not settings"),
        (lambda raw: raw.update(rfdit=[1]), "is damaged: it has another structure than a checkpoint"),
        (lambda raw: raw.update(state_dict="x"), "is damaged: it has another structure than a checkpoint"),
        (lambda raw: raw.update(ema={"ema": "x"}), "is damaged: it has another structure than a checkpoint"),
        (lambda raw: raw.update(global_step="7"), "is damaged: its step is not a number of steps"),
        (lambda raw: raw.update(loops="junk"), "is damaged: its loops are not what training wrote"),
        (
            lambda raw: average(raw).update({"backbone.final.linear.bias": "x"}),
            "backbone.final.linear.bias of its ema is not a tensor",
        ),
        (
            lambda raw: average(raw).pop("backbone.final.linear.bias"),
            "linear.bias: [48], found: nothing",
        ),
        (lambda raw: average(raw).update(x=torch.zeros(3)), "for x: nothing, found: [3]"),
        (
            lambda raw: average(raw).update({"backbone.final.linear.bias": torch.zeros(3)}),
            "for backbone.final.linear.bias: [48], found: [3]",
        ),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(
    cli: CommandLine, run: Path, damage: Callable[[dict[str, Any]], object], said: str
) -> None:
    raw = copy.deepcopy(read_raw(run / "checkpoints/last.ckpt"))
    damage(raw)
    torch.save(raw, "bad.ckpt")
    assert said in cli.error("sample", "ckpt=bad.ckpt", "prompts=[a]")
    if "for x" not in said:  # which the folder for diffusers does not contain
        assert said in cli.error("export", "ckpt=bad.ckpt", "format=diffusers", "out=out")


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("depth", 10**9, "model.depth is an integer beyond 10,000,000"),
        ("depth", 5_000, "model describes a network of more than "),
        ("width", 1_000_000, "its weights do not fit its configuration; expected for backbone.blocks.0.c"),
        (
            "input_size",
            4_000_000,
            "its weights do not fit its configuration; expected for backbone.positions",
        ),
        ("num_heads", 0, "model"),
        ("patch_size", 0, "model"),
    ],
)
def test_a_network_larger_than_its_weights_is_never_built(
    run: Path, tmp_path: Path, setting: str, value: int, said: str
) -> None:
    raw = copy.deepcopy(read_raw(run / "checkpoints/last.ckpt"))
    raw["rfdit"]["config"]["model"][setting] = value
    torch.save(raw, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=said):
        rfdit.load(tmp_path / "bad.ckpt", accelerator="cpu")


def average(raw: dict[str, Any]) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = raw["ema"]["ema"]["network"]
    return weights


def test_what_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^\./nothing does not exist, and a hub name has the form owner/name$"
    ):
        rfdit.load("./nothing")
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").write_text("{}")
    with pytest.raises(
        ValueError, match="pipeline is a folder for diffusers; load it with DiffusionPipeline"
    ):
        rfdit.load("pipeline")


def test_a_hub_name_is_read_from_the_hubs_cache(
    cli: CommandLine, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache as huggingface_hub lays it out; a checkpoint beside the weights is ignored."""
    snapshot = empty_snapshot(monkeypatch)
    cli.export(f"ckpt={run}", f"out={snapshot}")
    (snapshot / "last.ckpt").write_bytes(b"no pickle is read")
    model = rfdit.load("someone/model", accelerator="cpu")
    assert read_folder(snapshot).step == 7
    assert np.array_equal(
        model(PROMPTS[0], steps=2)[0], rfdit.load(run, accelerator="cpu")(PROMPTS[0], steps=2)[0]
    )
