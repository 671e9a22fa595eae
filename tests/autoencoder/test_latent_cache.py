"""Cached latents are the encoder's own."""

import pytest
import torch
from torch import Tensor

from rfdit.autoencoder.latent_cache import LatentCache


class Encoder:
    """Counts the images that it encodes."""

    def __init__(self) -> None:
        self.encoded = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        return images[:, :1, ::2, ::2] * 3


def test_each_image_is_encoded_once() -> None:
    cache, encoder, images = LatentCache(10), Encoder(), torch.randn(6, 3, 4, 4)
    expected = images[:, :1, ::2, ::2] * 3
    assert torch.equal(cache(encoder, images[:4]), expected[:4])
    order = torch.tensor([5, 1, 0, 5, 4, 3])
    assert torch.equal(cache(encoder, images[order]), expected[order])
    assert encoder.encoded == 6


def test_images_of_the_same_bytes_and_another_shape_are_others() -> None:
    cache, white = LatentCache(10), torch.ones(1, 3, 4, 8)
    for images in (white, white.view(1, 3, 8, 4)):  # as buckets=aspect has them
        assert torch.equal(cache(Encoder(), images), images[:, :1, ::2, ::2] * 3)


def test_the_oldest_are_forgotten() -> None:
    cache, encoder, images = LatentCache(2), Encoder(), torch.randn(3, 3, 4, 4)
    for i in (0, 1, 0, 2, 0, 1):
        cache(encoder, images[i : i + 1])
    assert encoder.encoded == 4  # 0, 1, 2, and 1 again


def test_without_a_size_nothing_is_remembered() -> None:
    cache, encoder, images = LatentCache(0), Encoder(), torch.randn(3, 3, 4, 4)
    for _ in range(2):
        cache(encoder, images)
    assert encoder.encoded == 6


def test_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"autoencoder\.cache_size=-1 must not be negative"):
        LatentCache(-1)
