"""Pictures from a checkpoint, as a user asks for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfdit.config import build
from rfdit.sample import load_network
from rfdit.training.checkpoint import read_checkpoint
from tests.command_line import CommandLine

PROMPTS = ["a small red circle", "a large blue star", "a small red circle left of a large blue square"]


@pytest.fixture
def run(cli: CommandLine) -> Path:
    """A run folder with two checkpoints, its EMA apart from its weights."""
    cli.train("run_dir=run", "trainer.max_steps=20", "schedule.warmup_steps=0", "optimizer.lr=1e-2")
    return Path("run")


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))])


def test_writes_pictures_grid_and_record(cli: CommandLine, run: Path) -> None:
    printed = cli.sample("ckpt=run", f"prompts=[{','.join(PROMPTS)}]", "out=out", "count=2", "seed=7")
    assert "6 pictures in out, together in out/grid.png" in printed
    assert sorted(p.name for p in Path("out").iterdir()) == [
        *(f"{i:05d}.png" for i in range(6)), "grid.png", "samples.json",
    ]  # fmt: skip
    record = json.loads(Path("out/samples.json").read_text())
    assert [entry["input"] for entry in record["samples"]] == [p for p in PROMPTS for _ in range(2)]
    assert record["config"]["seed"] == 7
    assert record["step"] == 20
    inside = Image.open("out/00005.png")
    assert inside.size == (32, 32)
    assert inside.text["prompt"] == PROMPTS[2]  # type: ignore[attr-defined]
    assert json.loads(inside.text["rfdit"])["key"] == 5  # type: ignore[attr-defined]


def test_the_record_makes_the_picture_again(cli: CommandLine, run: Path) -> None:
    cli.sample("ckpt=run", f"prompts=[{','.join(PROMPTS)}]", "out=out", "guidance.scale=2", "seed=3")
    config = json.loads(Image.open("out/00001.png").text["rfdit"])["config"]  # type: ignore[attr-defined]
    assert config["guidance"]["scale"] == 2
    again = [f"seed={config['seed']}", f"guidance.scale={config['guidance']['scale']}", "out=again"]
    cli.sample("ckpt=run", f"prompts=[{','.join(config['prompts'])}]", *again)
    assert np.array_equal(pictures(Path("out")), pictures(Path("again")))


def test_batch_size_does_not_change_the_pictures(cli: CommandLine, run: Path) -> None:
    for size in (1, 2, 32):
        cli.sample(
            "ckpt=run",
            f"prompts=[{','.join(PROMPTS)}]",
            f"batch_size={size}",
            f"out=b{size}",
            "precision=fp32",
        )
    whole = pictures(Path("b32")).astype(int)
    for size in (1, 2):
        assert abs(pictures(Path(f"b{size}")).astype(int) - whole).max() <= 1


def test_seed_and_prompt_and_solver_change_them(cli: CommandLine, run: Path) -> None:
    base = ["ckpt=run", "prompts=[a small red circle]"]
    for out, change in (("a", "seed=0"), ("b", "seed=1"), ("c", "sampler=heun"), ("d", "weights=raw")):
        cli.sample(*base, change, f"out={out}")
    assert all(not np.array_equal(pictures(Path("a")), pictures(Path(other))) for other in "bcd")


def test_prompts_from_a_file(cli: CommandLine, run: Path) -> None:
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    cli.sample("ckpt=run/checkpoints/last.ckpt", "prompts=prompts.txt", "out=out")
    assert len(pictures(Path("out"))) == 3


def test_pictures_land_in_the_run_by_default(cli: CommandLine, run: Path) -> None:
    cli.sample("ckpt=run", "prompts=[a small red circle]")
    assert len(list(run.glob("samples/*/grid.png"))) == 1


def test_ema_weights_are_the_average(cli: CommandLine, run: Path) -> None:
    saved = read_checkpoint(run / "checkpoints/last.ckpt")
    assert list(saved.ema) == ["ema"]
    raw, ema = (load_network(saved, saved.config, weights) for weights in ("raw", "ema"))
    different = [not torch.equal(a, b) for a, b in zip(raw.parameters(), ema.parameters())]
    assert sum(different) > len(different) / 2


def test_negative_prompt(cli: CommandLine, run: Path) -> None:
    base = ["ckpt=run", "prompts=[a small red circle]"]
    cli.sample(*base, "out=plain")
    cli.sample(*base, "negative=a large blue star", "out=negative")
    assert not np.array_equal(pictures(Path("plain")), pictures(Path("negative")))


def test_evaluation_prints_one_line(cli: CommandLine, run: Path) -> None:
    printed = cli.sample("ckpt=run", "eval=prompt_accuracy", "eval.pictures_per_thing=1", "eval.pairs=4")
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
    assert pictures(Path("out")).shape == (1, 64, 64, 3)


def test_build_gives_the_constructors_own_sentence() -> None:
    node = {"_target_": "rfdit.sampler.ClassifierFree", "scale": -1}
    with pytest.raises(ValueError, match=r"^guidance.scale=-1 must not be negative$"):
        build(node)
