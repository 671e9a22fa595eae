"""Encoding images into a cache and training from it, as a user would type it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import rfdit.commands.encode
from tests.support.commands.command_line import CommandLine, metrics


def encode(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    settings = ["batch_size=4", "num_workers=0", "accelerator=cpu", "data.resolution=64"]
    monkeypatch.setattr(sys, "argv", ["encode", *settings, *overrides])
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # the tests' own stay
    rfdit.commands.encode.main()


@pytest.fixture
def encoders(assets: Path) -> list[str]:
    return [
        "autoencoder=taesd",
        f"autoencoder.source={assets / 'autoencoder/taesd'}",
        "text_encoder=minilm",
        f"text_encoder.source={assets / 'text_encoder/minilm'}",
    ]


@pytest.mark.slow
def test_live_and_cached_training_are_the_same(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, emoji_shard: Path, encoders: list[str]
) -> None:
    encode(monkeypatch, "out=cache", f"data.shards={emoji_shard}", *encoders)
    training = [*encoders, "data.resolution=64", "patch=p2", "trainer.max_steps=20"]
    cli.train("run_dir=live", "data=laion", f"data.shards={emoji_shard}", *training)
    cli.train("run_dir=cached", "data=latents", "data.shards=cache", *training)
    cli.train("run_dir=captions", "data=latents", "data.shards=cache", "data.decoder.text=false", *training)
    curves = [[row["train/loss"] for row in metrics(Path(run))] for run in ("live", "cached", "captions")]
    assert len(curves[0]) == 20  # more than one pass over the 51 emoji
    assert curves[0] == curves[1] == curves[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shards", "sizes"),
    [
        (["cc12m/cc12m-train-0000"], [32]),
        ([f"emoji/emoji-000{i}" for i in (5, 6, 7)], [200, 100, 51]),
        (["cc12m/cc12m-train-0000", "emoji/emoji-0006", "emoji/emoji-0007"], [32, 100, 51]),
    ],
    ids=["photos", "uneven", "both"],
)
def test_real_shards_train_the_same_from_images_and_from_the_cache(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, assets: Path, encoders: list[str], shards: list[str],
    sizes: list[int],
) -> None:  # fmt: skip
    images = f"data.shards=[{','.join(str(assets / f'data/{shard}.tar') for shard in shards)}]"
    encode(monkeypatch, "out=cache", images, *encoders)
    reports = [json.loads(Path(f"cache/{Path(shard).name}.json").read_text()) for shard in shards]
    assert [report["samples"] for report in reports] == sizes
    training = [*encoders, "data.resolution=64", "patch=p2", "trainer.max_steps=12"]
    cli.train("run_dir=live", "data=laion", images, *training)
    # In the order of the images' shards, which decides which samples a step has.
    latents = f"data.shards=[{','.join(f'cache/{Path(shard).name}.tar' for shard in shards)}]"
    cli.train("run_dir=cached", "data=latents", latents, *training)
    live, cached = ([row["train/loss"] for row in metrics(Path(run))] for run in ("live", "cached"))
    assert len(set(live)) == 12
    assert live == cached


@pytest.mark.slow
def test_a_run_that_the_cache_does_not_fit_is_refused(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, few_emoji: Path, encoders: list[str]
) -> None:
    encode(monkeypatch, "out=cache", f"data.shards={few_emoji}", *encoders)
    cached = ["run_dir=run", "data=latents", "data.shards=cache", "data.resolution=64", "patch=p2"]
    message = cli.error("train", *cached, *encoders[2:])
    assert message.startswith("the latents of ")
    assert "autoencoder.latent_channels=3 (the cache has 4)" in message
    message = cli.error("train", *cached, *encoders, "data.resolution=128")
    assert "data.resolution=[128, 128] (the cache has [64, 64])" in message
    message = cli.error("train", *cached, *encoders[:2])
    assert "text_encoder._target_" in message
    assert "data.decoder.text=false leaves the cached text features unread" in message
    assert cli.error("train", *cached, *encoders, "data.flip=true").startswith("data.flip is not a setting")
    message = cli.error("train", *cached, *encoders, f"data.shards={few_emoji}")
    assert "latents.json does not exist" in message


def copied(folder: Path, to: Path, *, changed: bool) -> str:
    """The same pretrained model elsewhere, or one that differs in one weight."""
    shutil.copytree(folder, to)
    (file,) = to.glob("*.safetensors")
    weights = load_file(file)
    if changed:
        name = next(name for name in sorted(weights) if weights[name].is_floating_point())
        weights[name].view(-1)[0] += 0.5
    save_file(weights, file, metadata={"format": "pt"})
    return str(to)


@pytest.mark.slow
def test_other_weights_are_refused_wherever_they_are(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, few_emoji: Path, encoders: list[str], assets: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    encode(monkeypatch, "out=cache", f"data.shards={few_emoji}", *encoders)
    training = ["data=latents", "data.shards=cache", "data.resolution=64", "patch=p2", "trainer.max_steps=1"]
    taesd, minilm = assets / "autoencoder/taesd", assets / "text_encoder/minilm"
    same = [
        f"autoencoder.source={copied(taesd, tmp_path / 'a', changed=False)}",
        f"text_encoder.source={copied(minilm, tmp_path / 'b', changed=False)}",
    ]
    cli.train("run_dir=same", *training, *encoders, *same)
    other = f"autoencoder.source={copied(taesd, tmp_path / 'c', changed=True)}"
    message = cli.error("train", "run_dir=run", *training, *encoders, other)
    assert f"do not fit this run: {other} has the weights " in message
    assert f"of autoencoder.source={taesd}); set what the cache has, or encode again" in message
    other = f"text_encoder.source={copied(minilm, tmp_path / 'd', changed=True)}"
    message = cli.error("train", "run_dir=run", *training, *encoders, other)
    assert f"do not fit this run: {other} has the weights " in message
    cli.train("run_dir=captions", *training, *encoders, other, "data.decoder.text=false")
    # Encoding on with other weights would mix them.
    with pytest.raises(SystemExit, match=r"holds latents of other settings: .* has the weights"):
        encode(monkeypatch, "out=cache", f"data.shards={few_emoji}", *encoders, other)


@pytest.mark.slow
def test_buckets_train_the_same_from_images_and_from_the_cache(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, assets: Path, encoders: list[str]
) -> None:
    images = f"data.shards={assets / 'data/cc12m/cc12m-train-0000.tar'}"
    sizes = ["buckets=aspect", "data.buckets.step=16"]
    encode(monkeypatch, "out=cache", images, *encoders, *sizes)
    training = [*encoders, *sizes, "data.resolution=64", "patch=p2", "data.batch_size=4"]
    cli.train("run_dir=live", "data=laion", images, *training, "trainer.max_steps=12")
    cached = ["data=latents", "data.shards=cache", *training]
    cli.train("run_dir=cached", *cached, "trainer.max_steps=6")
    cli.train("run_dir=cached", "ckpt=last", *cached, "trainer.max_steps=12")
    live, found = ([row["train/loss"] for row in metrics(Path(run))] for run in ("live", "cached"))
    assert len(set(live)) == 12
    assert live == found
