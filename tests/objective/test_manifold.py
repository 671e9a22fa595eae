"""Data on a plane in many dimensions, through a network narrower than these: only the data can be predicted.

The toy of JiT (arXiv 2511.13720): points of the plane, embedded by a random orthogonal projection, and layers of 256
units. Of 512 dimensions data use two. Noise, and so the velocity, fill all, and outputs of rank 256 miss at least half
of their variance, however long a network is trained: of the length of noise, 22.6, at least 16 remains.
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.model import DataPrediction, NoisePrediction, Prediction, VelocityPrediction, VPSchedule
from rfdit.objective import (
    IndependentCoupling,
    LogitNormalTime,
    NoiseWeighting,
    UniformTime,
    UniformWeighting,
    VelocityMatching,
)
from rfdit.randomness import SampleGenerator
from rfdit.sampler import Heun, NoGuidance, Sampler

DIMENSIONS, WIDTH, BATCH, STEPS = 512, 256, 128, 400
NOTHING = Condition(pooled=torch.zeros(1, 1))
PREDICTIONS = {
    "data": (DataPrediction(t_min=0.05), LogitNormalTime(mean=0.8, std=0.8), UniformWeighting()),
    "velocity": (VelocityPrediction(), LogitNormalTime(mean=0.8, std=0.8), UniformWeighting()),
    "noise": (NoisePrediction(schedule=VPSchedule()), UniformTime(), NoiseWeighting()),
}


class MLP(nn.Module):
    """Five layers of 256 units, given a point and its time; z_t (b, 512, 1, 1) -> (b, 512, 1, 1)."""

    patch_size, width = 1, WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        sizes = [DIMENSIONS + 8, *[WIDTH] * 4, DIMENSIONS]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        angles = t[:, None] * torch.pi * torch.tensor([0.5, 1.0, 2.0, 4.0])
        x = torch.cat([z_t.flatten(1), angles.cos(), angles.sin()], dim=1)
        return self.layers(x)[..., None, None]


def circle(u: Tensor) -> Tensor:
    """Points of the unit circle, (n,) -> (n, 2)."""
    return torch.stack([(2 * torch.pi * u).cos(), (2 * torch.pi * u).sin()], dim=1)


def generated(prediction: Prediction, objective: VelocityMatching, plane: Tensor) -> Tensor:
    """Points that a trained network makes of noise, (n, 512)."""
    network = prediction(MLP())  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for step in range(STEPS):
        generator = SampleGenerator(seed=0, keys=step * BATCH + torch.arange(BATCH))
        z0 = (circle(generator.fork("data").uniform()) @ plane.T)[..., None, None]
        optimizer.zero_grad()
        objective(network, z0, NOTHING, generator=generator).total.backward()  # type: ignore[arg-type]
        optimizer.step()
        schedule.step()
    z1 = SampleGenerator(seed=1, keys=torch.arange(512)).normal(DIMENSIONS, 1, 1)
    sampler = Sampler(solver=Heun(last_step="euler"), guidance=NoGuidance(), steps=50)
    return sampler(network, z1, NOTHING, NOTHING).flatten(1)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", PREDICTIONS)
def test_only_the_data_can_be_predicted_by_a_narrow_network(name: str) -> None:
    prediction, time, weighting = PREDICTIONS[name]
    objective = VelocityMatching(time=time, coupling=IndependentCoupling(), weighting=weighting)
    random = SampleGenerator(seed=2, keys=torch.arange(2)).normal(DIMENSIONS)
    plane = torch.linalg.qr(random.T).Q  # (512, 2)
    z0 = generated(prediction, objective, plane)
    within = z0 @ plane
    from_plane = (z0 - within @ plane.T).norm(dim=1).mean().item()
    from_circle = (within.norm(dim=1) - 1).abs().mean().item()
    if name == "data":
        assert (
            from_plane < 1
        )  # exactly t_min / e of the noise's 22.6 remains, 0.42, as the velocity is clamped
        assert from_circle < 0.3
    else:
        assert from_plane > 10
