"""Images from a checkpoint, as requested by a user."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfdit.checkpoint.saved_run import read_checkpoint
from rfdit.config.build import build
from rfdit.generate.load import load_network
from rfdit.image_grid import MARGIN
from rfdit.interchange.folder import read_folder
from tests.support.commands.command_line import TWENTY_STEPS, CommandLine, images
from tests.support.training.runs import Trained

PROMPTS = ["a small red circle", "a large blue star", "a small red circle left of a large blue square"]


@pytest.fixture
def run(trained: Trained) -> Path:
    """A run folder with two checkpoints, its EMA apart from its weights."""
    return trained(*TWENTY_STEPS)


def test_writes_images_grid_and_record(cli: CommandLine, run: Path) -> None:
    request = ["ckpt=run", f"prompts=[{','.join(PROMPTS)}]", "out=out", "count=2", "seed=7"]
    printed = cli.sample(*request, "sampler=heun")
    assert "6 images in out, together in out/grid.png; 4 evaluations of the velocity for each" in printed
    assert sorted(p.name for p in Path("out").iterdir()) == [
        *(f"{i:05d}.png" for i in range(6)), "environment.jsonl", "grid.png", "sample.lock", "samples.json",
    ]  # fmt: skip
    record = json.loads(Path("out/samples.json").read_text())
    assert [entry["input"] for entry in record["samples"]] == [p for p in PROMPTS for _ in range(2)]
    assert record["config"]["seed"] == 7
    assert record["step"] == 20
    assert "versions" in json.loads(Path("out/environment.jsonl").read_text())
    inside = Image.open("out/00005.png")
    assert inside.size == (32, 32)
    assert inside.text["prompt"] == PROMPTS[2]  # type: ignore[attr-defined]
    assert json.loads(inside.text["rfdit"])["key"] == 5  # type: ignore[attr-defined]


def test_the_record_makes_the_image_again(cli: CommandLine, run: Path) -> None:
    cli.sample("ckpt=run", f"prompts=[{','.join(PROMPTS)}]", "out=out", "guidance.scale=2", "seed=3")
    config = json.loads(Image.open("out/00001.png").text["rfdit"])["config"]  # type: ignore[attr-defined]
    assert config["guidance"]["scale"] == 2
    again = [f"seed={config['seed']}", f"guidance.scale={config['guidance']['scale']}", "out=again"]
    cli.sample("ckpt=run", f"prompts=[{','.join(config['prompts'])}]", *again)
    assert np.array_equal(images(Path("out")), images(Path("again")))


def test_batch_size_does_not_change_the_images(cli: CommandLine, run: Path) -> None:
    for size in (1, 2, 32):
        cli.sample(
            "ckpt=run",
            f"prompts=[{','.join(PROMPTS)}]",
            f"batch_size={size}",
            f"out=b{size}",
            "precision=fp32",
        )
    whole = images(Path("b32")).astype(int)
    for size in (1, 2):
        assert abs(images(Path(f"b{size}")).astype(int) - whole).max() <= 1


def test_seed_and_prompt_and_solver_change_them(cli: CommandLine, run: Path) -> None:
    base = ["ckpt=run", "prompts=[a small red circle]"]
    for out, change in (("a", "seed=0"), ("b", "seed=1"), ("c", "sampler=heun"), ("d", "weights=raw")):
        cli.sample(*base, change, f"out={out}")
    assert all(not np.array_equal(images(Path("a")), images(Path(other))) for other in "bcd")


def test_prompts_from_a_file(cli: CommandLine, run: Path) -> None:
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    cli.sample("ckpt=run/checkpoints/last.ckpt", "prompts=prompts.txt", "out=out")
    assert len(images(Path("out"))) == 3


def test_images_land_in_the_run_by_default(cli: CommandLine, run: Path) -> None:
    cli.sample("ckpt=run", "prompts=[a small red circle]")
    assert len(list(run.glob("samples/*/grid.png"))) == 1


def test_ema_weights_are_the_average(cli: CommandLine, run: Path) -> None:
    saved = read_checkpoint(run / "checkpoints/last.ckpt")
    assert list(saved.ema) == ["ema"]
    raw, ema = (load_network(saved, weights) for weights in ("raw", "ema"))
    different = [not torch.equal(a, b) for a, b in zip(raw.parameters(), ema.parameters())]
    assert sum(different) > len(different) / 2


def test_negative_prompt(cli: CommandLine, run: Path) -> None:
    base = ["ckpt=run", "prompts=[a small red circle]"]
    cli.sample(*base, "out=plain")
    cli.sample(*base, "negative=a large blue star", "out=negative")
    assert not np.array_equal(images(Path("plain")), images(Path("negative")))


def test_a_matrix_is_a_labelled_table(cli: CommandLine, run: Path) -> None:
    matrix = ["prompts=[a red circle, a blue star]", "seeds=[0,4]", "scales=[1,5]"]
    cli.sample("ckpt=run", *matrix, "out=matrix")
    table = images(Path("matrix"))
    record = json.loads(Path("matrix/samples.json").read_text())
    assert [(s["input"], s["seed"], s["scale"]) for s in record["samples"]] == list(
        itertools.product(["a red circle", "a blue star"], [0, 4], [1, 5])
    )
    # Each is the image that prompt, seed and scale make alone.
    cli.sample("ckpt=run", "prompts=[a blue star]", "seed=4", "guidance.scale=5", "out=one")
    assert abs(table[7].astype(int) - images(Path("one"))[0]).max() <= 1
    sheet = np.asarray(Image.open("matrix/grid.png"))
    shown = Image.fromarray(table[7]).resize((128, 128), Image.Resampling.NEAREST)
    assert np.array_equal(sheet[-128 - MARGIN : -MARGIN, -128 - MARGIN : -MARGIN], shown)


def test_one_scale_each(cli: CommandLine, run: Path) -> None:
    base = ["ckpt=run", "prompts=[a red circle, a blue star]", "matrix=false"]
    cli.sample(*base, "scales=[1,5]", "out=out")
    assert [s["scale"] for s in json.loads(Path("out/samples.json").read_text())["samples"]] == [1, 5]
    assert cli.error("sample", *base, "scales=[1,2,3]").startswith("scales has 3 entries for 2 prompts")


def test_scales_need_a_guidance_that_has_one(cli: CommandLine, run: Path) -> None:
    message = cli.error("sample", "ckpt=run", "prompts=[a]", "scales=[1,2]", "guidance=none")
    assert message == ("scales needs a guidance with a scale, and NoGuidance has none; use guidance=cfg")


def test_scales_of_what_is_inside_an_interval(cli: CommandLine, run: Path) -> None:
    base = ["ckpt=run", "prompts=[a red circle]", "guidance=interval", "guidance.high=0.9", "precision=fp32"]
    cli.sample(*base, "scales=[1,5]", "out=both")
    for i, scale in enumerate((1, 5)):
        cli.sample(*base, f"guidance.inside.scale={scale}", "out=one")
        assert abs(images(Path("both"))[i].astype(int) - images(Path("one"))[0]).max() <= 1
    assert not np.array_equal(*images(Path("both")))
    assert cli.error("sample", *base, "scales=[1,-2]") == (
        "scales=[1.0, -2.0] must be at least 0 and finite, each of them, or null"
    )


@pytest.mark.slow
def test_another_resolution(cli: CommandLine, run: Path) -> None:
    for given, shape in (("[24,40]", (24, 40)), ("16", (16, 16))):
        cli.sample("ckpt=run", "prompts=[a red circle]", f"resolution={given}", f"out=r{shape[0]}")
        assert images(Path(f"r{shape[0]}")).shape == (1, *shape, 3)
    assert cli.error("sample", "ckpt=run", "prompts=[a]", "resolution=[30,32]") == (
        "resolution=[30, 32] is not a multiple of 4 (autoencoder.downsampling=1 times model.patch_size=4); "
        "the nearest multiple is [32, 32]"
    )
    assert "resolution=[32] must be one side, or" in cli.error(
        "sample", "ckpt=run", "prompts=[a]", "resolution=[32]"
    )


def test_learned_positions_know_one_resolution(cli: CommandLine) -> None:
    cli.train("run_dir=learned", "model.positions=learned")
    message = cli.error("sample", "ckpt=learned", "prompts=[a]", "resolution=64")
    assert message == (
        "resolution=[64, 64]: the model was trained with model.positions=learned, which exist for [32, 32] only"
    )


def test_decoding_in_slices_changes_nothing(cli: CommandLine, run: Path) -> None:
    for size in ("null", "1"):
        cli.sample("ckpt=run", f"prompts=[{','.join(PROMPTS)}]", f"decode_batch={size}", f"out=d{size}")
    assert np.array_equal(images(Path("dnull")), images(Path("d1")))
    assert "decode_batch=0 must be at least 1" in cli.error(
        "sample", "ckpt=run", "prompts=[a]", "decode_batch=0"
    )


@pytest.mark.slow
def test_compiled_blocks_make_the_same_images(cli: CommandLine, run: Path) -> None:
    for compiled in ("false", "true"):
        cli.sample(
            "ckpt=run", "prompts=[a red circle]", f"compile={compiled}", f"out=c-{compiled}", "precision=fp32"
        )
    assert abs(images(Path("c-true")).astype(int) - images(Path("c-false"))).max() <= 1


class TestClasses:
    """A model of nine classes, whose names stand in a file."""

    NAMES = ("smileys", "people", "animals", "food", "travel", "activities", "objects", "symbols", "flags")

    @pytest.fixture
    def run(self, cli: CommandLine, emoji_shard: Path) -> str:
        Path("names.json").write_text(json.dumps(self.NAMES))
        cli.train(
            "run_dir=run", "model=dit", "data=imagenet_wds", f"data.shards={emoji_shard}", "data.resolution=16",
            "data.decoder.label_key=json.label", "data.decoder.names=names.json", "conditioner=labels",
            "conditioner.num_classes=9",
        )  # fmt: skip
        return "ckpt=run"

    def test_by_number_and_by_name(self, cli: CommandLine, run: str) -> None:
        cli.sample(run, "labels=[3,flags,Animals]", "out=out")
        record = json.loads(Path("out/samples.json").read_text())
        assert [s["input"] for s in record["samples"]] == [3, 8, 2]
        assert [s["caption"] for s in record["samples"]] == ["3: food", "8: flags", "2: animals"]

    def test_all_of_them_evenly(self, cli: CommandLine, run: str) -> None:
        cli.sample(run, "labels=all", "total=20", "out=out", "output=npz")
        labels = np.load("out/samples.npz")["arr_1"]
        assert set(np.bincount(labels)) == {2, 3}
        assert len(labels) == 20

    def test_a_class_that_is_none(self, cli: CommandLine, run: str) -> None:
        assert cli.error("sample", run, "labels=[flag]") == (
            "labels: flag is not a class of this model; did you mean flags?"
        )

    def test_the_checkpoint_carries_the_names(self, cli: CommandLine, run: str) -> None:
        Path("names.json").write_text(json.dumps([f"other {i}" for i in range(9)]))
        cli.sample(run, "labels=[flags]", "out=out")
        assert json.loads(Path("out/samples.json").read_text())["samples"][0]["caption"] == "8: flags"
        cli.export(run, "out=exported")
        assert read_folder(Path("exported")).class_names == list(self.NAMES)


def test_evaluation_prints_one_line(cli: CommandLine, run: Path) -> None:
    printed = cli.sample("ckpt=run", "eval=prompt_accuracy", "eval.images_per_thing=1", "eval.pairs=4")
    last = printed.strip().splitlines()[-1]
    name, _, values = last.partition(": ")
    assert name == "prompt accuracy"
    assert [pair.split("=")[0] for pair in values.split()] == ["colour", "shape", "relation"]
    assert all(0 <= float(pair.split("=")[1]) <= 1 for pair in values.split())


def test_encoders_may_have_moved(cli: CommandLine, assets: Path, emoji_shard: Path) -> None:
    taesd = assets / "autoencoder/taesd"
    Path("here").symlink_to(taesd)
    cli.train(
        "run_dir=latent", "autoencoder=taesd", "autoencoder.source=here", "data=laion",
        f"data.shards={emoji_shard}", "data.resolution=64",
    )  # fmt: skip
    Path("here").unlink()
    request = ["ckpt=latent", "prompts=[purple heart]", "out=out"]
    assert "autoencoder.source=here" in cli.error("sample", *request)
    cli.sample(*request, f"autoencoder.source={taesd}")
    assert images(Path("out")).shape == (1, 64, 64, 3)


def test_build_gives_the_constructors_own_sentence() -> None:
    node = {"_target_": "rfdit.sampler.ClassifierFree", "scale": -1}
    with pytest.raises(ValueError, match=r"^guidance.scale=-1 must be at least 0 and finite$"):
        build(node)


def test_a_checkpoint_that_would_run_something_else_is_refused(cli: CommandLine, run: Path) -> None:
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    saved["rfdit"]["config"]["model"] |= {"_target_": "os.system", "command": "touch ran"}
    torch.save(saved, "strange.ckpt")
    assert (
        "model._target_=os.system is not a part of a model that rfdit knows, and nothing else"
        in cli.error("sample", "ckpt=strange.ckpt", "prompts=[a]")
    )
    assert not Path("ran").exists()
