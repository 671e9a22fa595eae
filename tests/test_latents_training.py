"""From images to a cache and to training from it, as a user would type it."""

import sys
from pathlib import Path

import pytest

import rfdit.data.encode
from tests.command_line import CommandLine, metrics


def encode(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    settings = ["batch_size=4", "num_workers=0", "accelerator=cpu", "data.resolution=64"]
    monkeypatch.setattr(sys, "argv", ["encode", *settings, *overrides])
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # the tests' own stay
    rfdit.data.encode.main()


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


def test_a_run_that_the_cache_does_not_fit_is_refused(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, emoji_shard: Path, encoders: list[str]
) -> None:
    encode(monkeypatch, "out=cache", f"data.shards={emoji_shard}", *encoders)
    cached = ["run_dir=run", "data=latents", "data.shards=cache", "data.resolution=64", "patch=p2"]
    message = cli.error("train", *cached, *encoders[2:])
    assert message.startswith("the latents of ")
    assert "autoencoder.latent_channels=3 (the cache has 4)" in message
    message = cli.error("train", *cached, *encoders, "data.resolution=128")
    assert "data.resolution=[128, 128] (the cache has [64, 64])" in message
    message = cli.error("train", *cached, *encoders[:2])
    assert "text_encoder._target_" in message
    assert "data.decoder.text=false leaves the cached text features unread" in message
    assert cli.error("train", *cached, *encoders, "data.flip=true").startswith("data.flip is no setting")
    message = cli.error("train", *cached, *encoders, f"data.shards={emoji_shard}")
    assert "latents.json does not exist" in message
