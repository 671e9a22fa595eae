"""The real TAESD and TAESD3 on a real photo."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop

from rfdit.autoencoder.diffusers import DiffusersAutoencoder
from rfdit.randomness import SampleGenerator
from tests.support.data.encoding import encode


def build(assets: Path, name: str, **settings: str) -> DiffusersAutoencoder:
    channels = {"taesd": 4, "taesd3": 16}[name]
    source = str(assets / "autoencoder" / name)
    return DiffusersAutoencoder(
        source=source, name=name, latent_channels=channels, downsampling=8, **settings
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "dtype", "side", "decibels"),
    [
        ("taesd", "fp32", 256, 22),
        ("taesd3", "fp32", 256, 27),
        # A processor without bf16 units is a hundred times slower, so a part of the photo has to do.
        ("taesd", "bf16", 64, 18),
        ("taesd3", "bf16", 64, 21.5),
    ],
)
def test_a_photo_survives(
    assets: Path, photo: Tensor, name: str, dtype: str, side: int, decibels: float
) -> None:
    autoencoder = build(assets, name, dtype=dtype)
    photo = center_crop(photo, [side, side])
    latents = encode(autoencoder, photo)
    images = autoencoder.decode(latents)
    assert latents.shape == (1, autoencoder.latent_channels, side // 8, side // 8)
    assert latents.dtype == images.dtype == torch.float32
    assert 0.5 < latents.std() < 1.5
    assert images.abs().max() <= 1
    error = ((images - photo) / 2).square().mean()  # as of pixels in [0, 1]
    assert -10 * error.log10() > decibels


def test_there_is_nothing_to_draw(assets: Path, photo: Tensor) -> None:
    autoencoder, photo = build(assets, "taesd"), center_crop(photo, [64, 64])
    drawn = encode(autoencoder, photo, generator=SampleGenerator(seed=0, keys=torch.tensor([3])))
    assert torch.equal(drawn, encode(autoencoder, photo))


def test_settings_that_disagree_with_the_weights_are_named(assets: Path) -> None:
    source = str(assets / "autoencoder/taesd")
    with pytest.raises(ValueError, match=r"autoencoder\.latent_channels=16 \(the weights have 4\)"):
        DiffusersAutoencoder(source=source, name="taesd", latent_channels=16, downsampling=8)
