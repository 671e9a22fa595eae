"""A small pipeline of labels, from noise to images without an autoencoder."""

import torch

from rfdit.autoencoder.identity import IdentityAutoencoder
from rfdit.conditioning import LabelConditioner
from rfdit.model import DiT
from rfdit.network import Network
from rfdit.sampler import ClassifierFree, Euler, Pipeline, Sampler


def small_network() -> Network:
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
