"""python -m rfdit.export and rfdit.load, from a run to the same pictures."""

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
from rfdit.interchange.folder import read_folder
from rfdit.sampler import Heun
from rfdit.training.checkpoint import read_checkpoint, read_raw
from rfdit.training.sharded_checkpoint import write_sharded
from tests.command_line import CommandLine
from tests.interchange.conftest import LABELS, MakeCheckpoint, write_checkpoint

PROMPTS = ["a small red circle", "a large blue star"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose average is not its weights."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder


def pictures(folder: str) -> list[np.ndarray]:
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
    with pytest.raises(ValueError, match=r"out is damaged: its model\.safetensors is not what was written"):
        rfdit.load("out")
    description = json.loads(Path("out/config.json").read_text())
    del description["weights_crc32"]  # as older versions wrote it
    Path("out/config.json").write_text(json.dumps(description))
    assert read_folder(Path("out")).step == 7


def test_places_and_addresses_stay_at_home(cli: CommandLine, run: Path) -> None:
    cli.export(f"ckpt={run}", "out=out")
    written = Path("out/config.json").read_text() + Path("out/README.md").read_text()
    assert "run_dir" not in written
    assert "data" not in json.loads(Path("out/config.json").read_text())["config"]


def test_load_makes_the_pictures_of_sample(cli: CommandLine, run: Path) -> None:
    cli.export(f"ckpt={run}", "out=out")
    cli.sample(f"ckpt={run}", f"prompts=[{','.join(PROMPTS)}]", "seed=5", "guidance.scale=2", "out=pictures")
    for source in (run, str(run / "checkpoints/last.ckpt"), "out"):
        model = rfdit.load(source, accelerator="cpu")
        assert same(model(PROMPTS, steps=2, guidance_scale=2, seed=5), pictures("pictures"))


def test_a_trained_run_travels(cli: CommandLine) -> None:
    few = ["data.shards.samples=64", "data.shards.shards=1", "data.val_shards.samples=8"]
    cli.train("run_dir=run", "trainer.max_steps=2", "schedule.warmup_steps=0", *few)
    cli.export("ckpt=run", "out=out")
    (picture,) = rfdit.load("out", accelerator="cpu")(PROMPTS[0], steps=2)
    assert np.array_equal(picture, rfdit.load("run", accelerator="cpu")(PROMPTS[0], steps=2)[0])


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


def test_one_caption_is_one_picture(run: Path) -> None:
    model = rfdit.load(run, accelerator="cpu")
    (alone,) = model(PROMPTS[0], steps=2)
    assert (alone.size, alone.mode) == ((32, 32), "RGB")
    assert not np.array_equal(alone, model(PROMPTS[0], steps=2, seed=1)[0])
    assert not np.array_equal(alone, model(PROMPTS[0], steps=2, solver=Heun())[0])
    assert not np.array_equal(alone, model(PROMPTS[0], steps=2, shift=3.0)[0])
    assert not np.array_equal(alone, model(PROMPTS[0], steps=2, negative=PROMPTS[1])[0])
    # Earlier calls left nothing behind, and a picture of several is the one made alone.
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
    cli.sample(f"ckpt={run}", "labels=[2,0]", "out=pictures")
    model = rfdit.load("out", accelerator="cpu")
    assert same(model([2, 0], steps=2), pictures("pictures"))
    with pytest.raises(
        ValueError, match="was trained on class labels; inputs=\\['a cat'\\] is something else"
    ):
        model("a cat")
    with pytest.raises(ValueError, match="class labels; negative='blur' is something else"):
        model(1, negative="blur")


def test_wrong_input_is_one_sentence(cli: CommandLine, run: Path) -> None:
    model = rfdit.load(run, accelerator="cpu")
    with pytest.raises(ValueError, match="trained on captions; inputs=\\[3\\] is something else"):
        model(3)
    with pytest.raises(ValueError, match=r"inputs=\[\] names nothing"):
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
        "format=onnx is unknown; use safetensors or diffusers"
    )
    assert f"weights=power_05 is not in ckpt={run}" in cli.error(
        "export", f"ckpt={run}", "out=o", "weights=power_05"
    )
    assert cli.error("export", f"ckpt={run}") == "out is not set; give out=..."
    assert cli.error("export", "out=o", "chkpt=run") == "chkpt is no setting; did you mean ckpt?"
    assert not Path("o").exists()


def test_a_folder_knows_no_code(cli: CommandLine, run: Path) -> None:
    """Neither another package's function, nor one that a module of ours imported, nor the environment."""
    cli.export(f"ckpt={run}", "out=out")
    path = Path("out/config.json")
    good = json.loads(path.read_text())
    for target in ("os.system", "rfdit.sample.os.system", "rfdit.config.build", "builtins.eval", "nothing"):
        bad = good | {"config": good["config"] | {"autoencoder": {"_target_": target, "command": "true"}}}
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=rf"autoencoder._target_={target} is no class of rfdit"):
            rfdit.load("out")
    bad = good | {
        "config": good["config"] | {"autoencoder": good["config"]["autoencoder"] | {"x": "${oc.env:HOME}"}}
    }
    path.write_text(json.dumps(bad))
    with pytest.raises(ValueError, match=r"autoencoder.x=\$\{oc.env:HOME\} is an interpolation"):
        rfdit.load("out")


def test_a_checkpoint_knows_no_code(run: Path, tmp_path: Path) -> None:
    raw = read_raw(run / "checkpoints/last.ckpt")
    config, bad = raw["rfdit"]["config"], {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    hidden = {"_target_": "rfdit.sampler.Euler", "_args_": (bad,)}  # JSON has no tuples, a checkpoint has
    for group, node, path in (
        ("autoencoder", bad, "autoencoder"),
        ("sampler", config["sampler"] | {"solver": hidden}, "sampler.solver._args_.0"),
    ):
        torch.save(raw | {"rfdit": raw["rfdit"] | {"config": config | {group: node}}}, tmp_path / "bad.ckpt")
        with pytest.raises(ValueError, match=rf"{path}._target_=os.mkdir is no class of rfdit"):
            rfdit.load(tmp_path / "bad.ckpt")
    assert not (tmp_path / "made").exists()


def test_a_package_may_be_trusted(cli: CommandLine, run: Path) -> None:
    cli.export(f"ckpt={run}", "out=out")
    path = Path("out/config.json")
    description = json.loads(path.read_text())
    description["config"]["model"]["attention"] = {"_target_": f"{__name__}.OwnAttention"}
    path.write_text(json.dumps(description))
    with pytest.raises(
        ValueError, match=r"model.attention._target_=\S+ is no class of rfdit, and nothing else"
    ):
        rfdit.load("out")
    assert rfdit.load("out", packages=["rfdit", "tests"], accelerator="cpu")(PROMPTS[0], steps=1)


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
    with pytest.raises(ValueError, match="out cannot be read as a model that rfdit exported"):
        rfdit.load("out")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda raw: raw.pop("state_dict"),
            "bad.ckpt is damaged: it lacks a part of a checkpoint ('state_dict')",
        ),
        (
            lambda raw: raw["rfdit"].update(config={}),
            "bad.ckpt is damaged: its configuration has no model, cond",
        ),
        (
            lambda raw: raw["rfdit"]["config"].pop("autoencoder"),
            "is damaged: its configuration has no autoencoder",
        ),
        (
            lambda raw: average(raw).pop("backbone.final.linear.bias"),
            "linear.bias wants [48], and there is nothing",
        ),
        (lambda raw: average(raw).update(x=torch.zeros(3)), "for x wants nothing, and there is [3]"),
        (
            lambda raw: average(raw).update({"backbone.final.linear.bias": torch.zeros(3)}),
            "for backbone.final.linear.bias wants [48], and there is [3]",
        ),
    ],
    ids=["no weights", "no settings", "no autoencoder", "one less", "one more", "a shape"],
)
def test_a_damaged_checkpoint_is_one_sentence(
    cli: CommandLine, run: Path, damage: Callable[[dict[str, Any]], object], said: str
) -> None:
    raw = copy.deepcopy(read_raw(run / "checkpoints/last.ckpt"))
    damage(raw)
    torch.save(raw, "bad.ckpt")
    assert said in cli.error("sample", "ckpt=bad.ckpt", "prompts=[a]")
    if "for x" not in said:  # which is no part of what diffusers gets
        assert said in cli.error("export", "ckpt=bad.ckpt", "format=diffusers", "out=out")


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
    """Laid out as huggingface_hub does; a checkpoint beside the weights is not looked at."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("cache").absolute()))
    repository = Path("cache/models--someone--model")
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    snapshot.parent.mkdir(parents=True)
    cli.export(f"ckpt={run}", f"out={snapshot}")
    (snapshot / "last.ckpt").write_bytes(b"no pickle is read")
    model = rfdit.load("someone/model", accelerator="cpu")
    assert read_folder(snapshot).step == 7
    assert np.array_equal(
        model(PROMPTS[0], steps=2)[0], rfdit.load(run, accelerator="cpu")(PROMPTS[0], steps=2)[0]
    )
