"""The muP benchmark runs, on networks small enough for a test."""

import dataclasses
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from rfdit.batch import Condition
from rfdit.commands.encode import encode
from rfdit.data.latents.decoder import LatentDecoder
from rfdit.network import Network
from tests.support.commands.benchmarks import benchmark
from tests.support.data.latent_shards import settings
from tests.support.data.shards import numbered_sample, write_tar

SAMPLES = 10


@pytest.fixture
def mup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return benchmark("mup_transfer", monkeypatch)


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """Latents in two shards, as the encoder writes them, of classes 0 to 9."""
    shards = [
        write_tar(tmp_path / f"images/{i}.tar", map(numbered_sample, range(5 * i, 5 * i + 5))) for i in (0, 1)
    ]
    encode(settings(shards, tmp_path / "latents"))
    return tmp_path / "latents"


@pytest.fixture
def words(latents: Path, tmp_path: Path) -> list[str]:
    shapes = ["--size", "--shape", "16,1,2", "32,1,2", "--base-width", "16", "--patch", "4"]
    amounts = ["--batch", "4", "--steps", "6", "--warmup", "1", "--draws", "2", "--device", "cpu"]
    places = ["--latents", str(latents), "--out", str(tmp_path / "out")]
    return ["", *places, *shapes, *amounts, "--precision", "fp32", "--lr", "0.001", "0.01"]


def point(mup: ModuleType, **changes: object) -> object:
    settings = {
        "data": "none", "patch": 4, "batch": 4, "steps": 8, "warmup": 1, "base_width": 16, "draws": 3, "seed": 0,
        "precision": "fp32", "size": "32x1x2", "width": 32, "depth": 1, "heads": 2, "optimizer": "adamw_mup",
        "lr": 1e-2,
    }  # fmt: skip
    return mup.Point(**settings | changes)


def test_all_latents_are_read_with_their_labels(mup: ModuleType, latents: Path) -> None:
    data = mup.read_latents(latents, torch.device("cpu"))
    assert data.latents.shape == (SAMPLES, 3, 8, 8)
    assert data.labels.tolist() == list(range(SAMPLES))
    assert data.classes == SAMPLES
    # An image's red is its number, and the identity's latents are images in [-1, 1].
    torch.testing.assert_close(data.latents[:, 0, 0, 0], torch.arange(SAMPLES) / 127.5 - 1, atol=5e-3, rtol=0)


def test_latents_without_labels_are_refused(
    mup: ModuleType, latents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = LatentDecoder.__call__

    def unlabelled(decoder: LatentDecoder, raw: dict[str, object], size: tuple[int, int]) -> object:
        return dataclasses.replace(decode(decoder, raw, size), label=None)

    monkeypatch.setattr(LatentDecoder, "__call__", unlabelled)
    with pytest.raises(SystemExit, match=r"has no labels; encode with data\.decoder\.label_key"):
        mup.read_latents(latents, torch.device("cpu"))


def test_every_epoch_has_every_sample_once(mup: ModuleType) -> None:
    order = mup.order(10, point(mup, steps=5, batch=4)).flatten().tolist()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_the_loss_is_over_all_latents_and_the_same_noise(mup: ModuleType, latents: Path) -> None:
    """A velocity that is the mean of data, whatever z_t is, has another loss than none, always the same."""
    data = mup.read_latents(latents, torch.device("cpu"))
    seen: list[torch.Tensor] = []

    def constant(z_t: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        seen.append(t)
        return -data.latents.mean(0).expand_as(z_t)

    chosen = point(mup)
    conditioner = mup.build(chosen, data).conditioner
    zero, again = (mup.evaluate(mup.zero_velocity, conditioner, data, chosen) for _ in range(2))
    assert zero == again
    assert mup.evaluate(constant, conditioner, data, chosen) < zero
    assert torch.cat(seen).unique().numel() == 3 * SAMPLES
    # E |z1 - z0|^2 is one more than the latents' square, but for the noise of 30 draws of 192 numbers.
    assert zero == pytest.approx(1 + data.latents.square().mean().item(), rel=0.1)


@pytest.mark.slow
def test_models_learn_and_are_measured_alike(mup: ModuleType, latents: Path) -> None:
    data = mup.read_latents(latents, torch.device("cpu"))
    rows = [
        mup.measure(point(mup, steps=40, optimizer=o), data, compiled=False)
        for o in ("adamw", "adamw_mup", "adamw")
    ]
    assert all(row.loss < 0.95 * row.zero for row in rows)
    assert rows[0].loss == rows[2].loss != rows[1].loss
    assert len({row.zero for row in rows}) == 1
    spoilt = mup.measure(point(mup, lr=1e30, steps=60), data, compiled=False)
    assert math.isnan(spoilt.loss)
    assert spoilt.diverged


def test_the_initialisation_belongs_to_the_optimizer(mup: ModuleType, latents: Path) -> None:
    data = mup.read_latents(latents, torch.device("cpu"))
    networks: list[Network] = [mup.build(point(mup, optimizer=o), data) for o in mup.OPTIMIZERS]
    plain, other = (network.backbone.time.out.weight.std().item() for network in networks)
    assert other == pytest.approx(plain / 2**0.5, rel=0.01)


@pytest.mark.slow
def test_it_measures_draws_and_goes_on(
    mup: ModuleType, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0"])
    mup.main()
    assert "left out after 0 minutes" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", words)
    mup.main()
    table = capsys.readouterr().out
    assert table.count("*") == 4  # the best of each size and optimiser
    file = tmp_path / "out/mup_transfer.csv"
    rows = mup.read(file)
    # At the base width there is one optimiser, which both panels show.
    assert [(row.width, row.optimizer) for row in rows] == [
        *(2 * [(16, "adamw")]), *(2 * [(32, "adamw"), (32, "adamw_mup")]),
    ]  # fmt: skip
    assert [row.lr for row in mup.curves(rows, "adamw_mup")["16x1x2"]] == [0.001, 0.01]
    assert Image.open(tmp_path / "out/images/mup_transfer.png").size == (960, 400)
    # A second run goes on with what is there.
    monkeypatch.setattr(sys, "argv", [*words, "0.1"])
    mup.main()
    assert mup.read(file)[: len(rows)] == rows
    assert len(mup.read(file)) == len(rows) + 3
    monkeypatch.setattr(mup, "measure", lambda *_, **__: pytest.fail("measured again"))
    mup.main()


def test_what_did_not_learn_is_said(
    mup: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    losses = {1e-3: 1.2, 1e-2: 2.5, 1e-1: math.nan}
    rows = [
        mup.Row(**vars(point(mup, lr=lr)), loss=loss, zero=1.5, seconds=0.1) for lr, loss in losses.items()
    ]
    mup.write(tmp_path / "rows.csv", rows)
    assert repr(mup.read(tmp_path / "rows.csv")) == repr(rows)
    mup.show(rows)
    printed = capsys.readouterr().out
    assert "1.2000*   diverged        NaN" in printed
    assert "best at an end of the grid" in printed
    mup.draw(tmp_path, rows)
