"""The pipeline from inputs to images: each image has its own noise in any batch."""

import math

import pytest
import torch

from rfdit.network import Network
from rfdit.sampler.pipeline import NotFiniteError
from tests.support.models.pipelines import pipeline, small_network


@pytest.fixture
def network() -> Network:
    return small_network()


def close(a: torch.Tensor, b: torch.Tensor, levels: int = 1) -> bool:
    """Equal to a grey level: a batch's size may change the last bit of a matrix product."""
    return bool((a.int() - b.int()).abs().max() <= levels)


def test_images_do_not_depend_on_the_batch(network: Network) -> None:
    together = pipeline(network)([0, 1, 2, 3, 0], seed=5)
    assert together.shape == (5, 3, 4, 4)
    assert together.dtype == torch.uint8
    assert close(pipeline(network, batch_size=2)([0, 1, 2, 3, 0], seed=5), together)
    assert close(pipeline(network)([2, 3], seed=5, first_key=2), together[2:4])


def test_seed_and_place_choose_the_noise(network: Network) -> None:
    first, second = pipeline(network)([1, 1], seed=5)
    assert not torch.equal(first, second)
    assert not torch.equal(pipeline(network)([1], seed=6)[0], first)
    assert torch.equal(pipeline(network)([1, 1], seed=5)[0], first)


def test_the_network_keeps_its_mode(network: Network) -> None:
    network.train()
    pipeline(network, batch_size=2)([0, 1, 2], seed=0)
    assert network.training
    with pytest.raises(ValueError, match="class labels must be"):
        pipeline(network)([99], seed=0)
    assert network.training


def test_bf16_is_close(network: Network) -> None:
    exact, half = (pipeline(network, bf16=flag)([0, 1, 2], seed=0) for flag in (False, True))
    assert close(exact, half, levels=12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_that_are_not_finite_are_refused(network: Network, value: float) -> None:
    latents = torch.zeros(3, 3, 4, 4)
    latents[1, 0, 0, 0] = value
    with pytest.raises(NotFiniteError, match="1 of 3 images have values that are NaN or infinite"):
        pipeline(network).decode(latents)
