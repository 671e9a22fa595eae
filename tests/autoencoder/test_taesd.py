"""The real TAESD and TAESD3 on a real photo."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rfdit.autoencoder.tiny import TinyAutoencoder
from rfdit.randomness import SampleGenerator
from tests.autoencoder.encoding import encode


def build(assets: Path, name: str, **settings: str) -> TinyAutoencoder:
    channels = {"taesd": 4, "taesd3": 16}[name]
    source = str(assets / "autoencoder" / name)
    return TinyAutoencoder(source=source, name=name, latent_channels=channels, downsampling=8, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "decibels"), [("taesd", 22), ("taesd3", 27)])
def test_a_photo_survives(assets: Path, photo: Tensor, name: str, decibels: float, dtype: str) -> None:
    autoencoder = build(assets, name, dtype=dtype)
    latents = encode(autoencoder, photo)
    images = autoencoder.decode(latents)
    assert latents.shape == (1, autoencoder.latent_channels, 32, 32)
    assert latents.dtype == images.dtype == torch.float32
    assert 0.5 < latents.std() < 1.5
    assert images.abs().max() <= 1
    error = ((images - photo) / 2).square().mean()  # as of pixels in [0, 1]
    assert -10 * error.log10() > decibels


def test_there_is_nothing_to_draw(assets: Path, photo: Tensor) -> None:
    autoencoder = build(assets, "taesd")
    drawn = encode(autoencoder, photo, generator=SampleGenerator(seed=0, keys=torch.tensor([3])))
    assert torch.equal(drawn, encode(autoencoder, photo))


def test_settings_that_disagree_with_the_weights_are_named(assets: Path) -> None:
    source = str(assets / "autoencoder/taesd")
    with pytest.raises(ValueError, match=r"autoencoder\.latent_channels=16 \(the weights have 4\)"):
        TinyAutoencoder(source=source, name="taesd", latent_channels=16, downsampling=8)
