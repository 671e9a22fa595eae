"""From inputs to pictures: each picture its own noise, whatever it is made together with."""

import pytest
import torch

from rfdit.autoencoder.identity import IdentityAutoencoder
from rfdit.conditioning import LabelConditioner
from rfdit.model import DiT
from rfdit.network import Network
from rfdit.sampler import ClassifierFree, Euler, Pipeline, Sampler


@pytest.fixture
def network() -> Network:
    backbone = DiT(width=16, depth=1, num_heads=2, patch_size=2, in_channels=3, input_size=4)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Network(backbone=backbone, conditioner=LabelConditioner(num_classes=4, width=16))


def pipeline(network: Network, *, batch_size: int = 8, bf16: bool = False, scale: float = 3.0) -> Pipeline:
    return Pipeline(
        network=network,
        autoencoder=IdentityAutoencoder(),
        sampler=Sampler(solver=Euler(), guidance=ClassifierFree(scale=scale), steps=3),
        latent_shape=(3, 4, 4),
        device=torch.device("cpu"),
        bf16=bf16,
        batch_size=batch_size,
    )


def close(a: torch.Tensor, b: torch.Tensor, levels: int = 1) -> bool:
    """Equal to a grey level: a batch's size may change the last bit of a matrix product."""
    return bool((a.int() - b.int()).abs().max() <= levels)


def test_pictures_do_not_depend_on_the_batch(network: Network) -> None:
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


def test_progress_and_the_networks_mode(network: Network) -> None:
    done: list[int] = []
    network.train()
    pipeline(network, batch_size=2)([0, 1, 2], seed=0, on_batch=done.append)
    assert done == [2, 3]
    assert network.training


def test_bf16_is_close(network: Network) -> None:
    exact, half = (pipeline(network, bf16=flag)([0, 1, 2], seed=0) for flag in (False, True))
    assert close(exact, half, levels=12)
