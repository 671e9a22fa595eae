"""Pixels as latents."""

import pytest
import torch

from rfdit.autoencoder.identity import IdentityAutoencoder
from tests.support.data.encoding import encode


def test_encodes_to_the_image_and_back() -> None:
    autoencoder = IdentityAutoencoder()
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    latents = encode(autoencoder, images)
    assert torch.equal(latents, images)
    assert torch.equal(autoencoder.decode(latents), images)
    assert (autoencoder.latent_channels, autoencoder.downsampling) == (3, 1)


def test_decoding_clips() -> None:
    assert IdentityAutoencoder().decode(torch.full((1, 3, 2, 2), 1.5)).max() == 1


def test_other_facts_than_those_of_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"autoencoder\.latent_channels=4"):
        IdentityAutoencoder(latent_channels=4)
