"""The sources of weights, and the messages when they cannot be read."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from rfdit.autoencoder import pretrained
from rfdit.autoencoder.diffusers import DiffusersAutoencoder
from rfdit.pretrained import hub


def build(source: str | Path, subfolder: str | None = None) -> DiffusersAutoencoder:
    return DiffusersAutoencoder(
        source=str(source), subfolder=subfolder, name="taesd", latent_channels=4, downsampling=8
    )


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that reaches no hub."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def test_an_unreachable_hub_is_said_at_once_with_a_way_out(no_hub: None) -> None:
    start = time.monotonic()
    with pytest.raises(OSError, match=r"autoencoder\.source=nobody/nothing") as caught:
        build("nobody/nothing", subfolder="vae")
    assert time.monotonic() - start < 120
    sentence = str(caught.value)
    assert "hub cannot be reached" in sentence
    assert "hf download nobody/nothing --include 'vae/*' --local-dir FOLDER" in sentence
    assert caught.value.__suppress_context__
    assert "\n" not in sentence


def test_a_hub_that_refuses_gives_its_reason(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)

    def load(source: str, subfolder: str | None, *, local: bool) -> None:
        raise OSError("not cached" if local else "the repository is gated\nand much more")

    monkeypatch.setattr(pretrained, "_load", load)
    with pytest.raises(OSError, match=r"no download: the repository is gated\. Run"):
        build("nobody/nothing")


@pytest.mark.parametrize("source", ["/no/such/folder", "./weights/taesd", "taesd"])
def test_a_missing_folder_is_not_a_hub_name(source: str) -> None:
    with pytest.raises(OSError, match=rf"autoencoder\.source={source}: there is no such folder"):
        build(source)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no config\.json and \.safetensors weights .* in this folder"):
        build(tmp_path)


def test_a_subfolder_that_is_not_there(assets: Path) -> None:
    with pytest.raises(OSError, match=r"in vae/ \(autoencoder\.subfolder\) of this folder"):
        build(assets / "autoencoder", subfolder="vae")


@pytest.mark.parametrize(("source", "subfolder"), [("autoencoder", "taesd"), ("autoencoder/taesd", "vae")])
def test_a_subfolder_or_the_autoencoder_s_own_folder(assets: Path, source: str, subfolder: str) -> None:
    assert build(assets / source, subfolder=subfolder).latent_channels == 4


def test_a_pickle_is_never_read(assets: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(assets / "autoencoder/taesd/diffusion_pytorch_model.safetensors")
    shutil.copy(assets / "autoencoder/taesd/config.json", tmp_path)
    torch.save(weights, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match=r"\.safetensors"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("AutoencoderKL", r"is not an AutoencoderKL: .* of its weights are missing or too many"),
        ("UNet2DModel", r"is of the class UNet2DModel; use one of AutoencoderKL, "),
    ],
)
def test_weights_of_another_class_are_refused(assets: Path, tmp_path: Path, kind: str, message: str) -> None:
    shutil.copytree(assets / "autoencoder/taesd", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": kind}))
    with pytest.raises(ValueError, match=message):
        build(tmp_path)
