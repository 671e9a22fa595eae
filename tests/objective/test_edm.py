"""EDM's loss in its own coordinates (arXiv 2206.00364, eq. 2, 7 and 8, and table 1)."""

import torch
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.config.build import build
from rfdit.flow import per_sample
from rfdit.model import EDMPrediction
from rfdit.objective import EDMWeighting, IndependentCoupling, VelocityMatching
from rfdit.randomness import SampleGenerator
from tests.support.commands.composing import composed

SIGMA_DATA, N = 0.7, 512


class Network(nn.Module):
    """Some F of the scaled input and the time, of which EDM's ln(sigma) / 4 is a function."""

    patch_size, width = 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return torch.sin(2 * x) + per_sample(torch.logit(t) / 4, x)


def test_the_preset_has_the_loss_of_the_paper() -> None:
    """E[lambda(sigma) ||D(y + n; sigma) - y||^2] with ln(sigma) ~ N(-1.2, 1.2^2), for the same draws."""
    z0 = SIGMA_DATA * torch.randn(N, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    generator = SampleGenerator(seed=0, keys=torch.arange(N))
    time = build(composed("train", "experiment=edm_baseline")["time"])
    objective = VelocityMatching(
        time=time, coupling=IndependentCoupling(), weighting=EDMWeighting(sigma_data=SIGMA_DATA)
    )
    cond = Condition(pooled=torch.zeros(N, 1))
    found = objective(EDMPrediction(sigma_data=SIGMA_DATA)(Network()), z0, cond, generator=generator)

    y = z0.double()
    normal = generator.fork("time").normal().double()
    sigma = per_sample((-1.2 + 1.2 * normal).exp(), y)
    x = y + sigma * generator.fork("noise").normal(2, 2, 2).double()
    total = sigma**2 + SIGMA_DATA**2
    output = torch.sin(2 * x / total.sqrt()) + sigma.log() / 4
    denoised = SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA / total.sqrt() * output
    weight = total / (sigma * SIGMA_DATA) ** 2
    wanted = (weight * (denoised - y).square()).mean()
    torch.testing.assert_close(found.total.double(), wanted, rtol=1e-4, atol=0)
