"""DDPM's loss with a learned variance against the papers' formulas, in DDPM's coordinates and float64.

The reference is written from Ho et al. (arXiv 2006.11239, eq. 5 to 7 and 13) and Nichol and Dhariwal (arXiv
2102.09672, eq. 15), with torch's and SciPy's normal distributions.
"""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from rfdit.batch import Condition
from rfdit.model import NoisePrediction, VPSchedule
from rfdit.objective import (
    IndependentCoupling,
    NoiseAndVarianceMatching,
    NoiseWeighting,
    TimestepTime,
    UniformTime,
)
from rfdit.objective.ddpm import log_probability_of_level
from rfdit.protocols import FlowLoss
from rfdit.randomness import SampleGenerator

BETA = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ABAR = (1 - BETA).cumprod(0)
BEFORE = torch.cat([torch.ones(1, dtype=torch.float64), ABAR[:-1]])
POSTERIOR = BETA * (1 - BEFORE) / (1 - ABAR)
POSTERIOR[0] = POSTERIOR[1]  # as in the papers' code, where its logarithm is needed
NOTHING = Condition(pooled=torch.zeros(1, 1))
Output = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Network(nn.Module):
    """A network of (epsilon, variance) in DDPM's own terms: of x and the timestep k, (b, 1, 1, 1)."""

    patch_size, width = 1, 1

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.output = output

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return torch.cat(self.output(x, (1000 * t).round().long()[:, None, None, None]), dim=1)


class Only:
    """One timestep of the schedule for all samples."""

    def __init__(self, k: int) -> None:
        self.schedule, self.k = VPSchedule(), k

    def __call__(self, generator: SampleGenerator) -> Tensor:
        return torch.full((len(generator.keys),), self.schedule.times[self.k])


def objective(k: int | None = None, **settings: float) -> NoiseAndVarianceMatching:
    time = TimestepTime(schedule=VPSchedule()) if k is None else Only(k)
    return NoiseAndVarianceMatching(
        time=time, coupling=IndependentCoupling(), weighting=NoiseWeighting(), **settings
    )


def loss_of(one: NoiseAndVarianceMatching, z0: Tensor, output: Output) -> FlowLoss:
    network = NoisePrediction(schedule=VPSchedule(), learned_variance=True)(Network(output))
    return one(network, z0, NOTHING, generator=SampleGenerator(seed=0, keys=torch.arange(len(z0))))


def drawn(z0: Tensor) -> Tensor:
    """The noise of `loss_of`."""
    keys = torch.arange(len(z0))
    return SampleGenerator(seed=0, keys=keys).fork("noise").normal(*z0.shape[1:]).double()


def posterior_mean(x: Tensor, x0: Tensor, k: Tensor) -> Tensor:
    """Of q(x_{k-1} | x_k, x_0), eq. 7."""
    on_data = BEFORE[k].sqrt() * BETA[k] / (1 - ABAR[k])
    return on_data * x0 + (1 - BETA[k]).sqrt() * (1 - BEFORE[k]) / (1 - ABAR[k]) * x


def published(x0: Tensor, noise: Tensor, k: Tensor, output: Output) -> tuple[Tensor, Tensor]:
    """L_simple and L_vb of each sample, the second in bits per dimension; k: (b, 1, 1, 1)."""
    x0 = x0.double()
    x = ABAR[k].sqrt() * x0 + (1 - ABAR[k]).sqrt() * noise
    epsilon, said = output(x, k)
    estimate = (x - (1 - ABAR[k]).sqrt() * epsilon) / ABAR[k].sqrt()
    share = (said + 1) / 2
    std = (share * BETA[k].log() + (1 - share) * POSTERIOR[k].log()).div(2).exp()
    mean = posterior_mean(x, estimate, k)
    truth = Normal(posterior_mean(x, x0, k), POSTERIOR[k].sqrt())
    bound = kl_divergence(truth, Normal(mean, std))
    likelihood = level(x0, mean, std)
    nats = torch.where(k == 0, -likelihood, bound)
    return (epsilon - noise).square().flatten(1).mean(1), nats.flatten(1).mean(1) / math.log(2)


def level(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log of the probability of x's level of 256, with SciPy's distribution."""
    normal = stats.norm(mean.numpy(), std.numpy())
    high = torch.from_numpy(normal.cdf((x + 1 / 255).numpy())).where(x <= 0.999, torch.ones(()).double())
    low = torch.from_numpy(normal.cdf((x - 1 / 255).numpy())).where(x >= -0.999, torch.zeros(()).double())
    return (high - low).clamp(min=1e-12).log()


def some_output(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Noise that is somewhat wrong, more so at late timesteps, and variances on both sides of the two betas."""
    return 0.8 * x + 0.1 * (k / 1000), torch.sin(3 * x + k / 100) * 1.5


def test_it_is_the_papers_at_every_kind_of_timestep() -> None:
    """From the first, where it is a likelihood, to the last; data beyond -1 and 1 included."""
    z0 = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(3)) * 0.6
    for number in (0, 1, 2, 10, 400, 998, 999):
        k = torch.full((64, 1, 1, 1), number)
        simple, vb = published(z0, drawn(z0), k, some_output)
        found = loss_of(objective(number), z0, some_output)
        torch.testing.assert_close(found.parts["simple"].double(), simple.mean(), rtol=1e-4, atol=0)
        torch.testing.assert_close(found.parts["vb"].double(), vb.mean(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.total, found.parts["simple"] + found.parts["vb"])


def test_timesteps_are_drawn_and_each_has_its_own_term() -> None:
    z0 = torch.rand(256, 1, 2, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1
    found = loss_of(objective(vb_weight=0.5), z0, some_output)
    k = VPSchedule().timestep(found.t).long()[:, None, None, None]
    assert len(k.unique()) > 200
    simple, vb = published(z0, drawn(z0), k, some_output)
    torch.testing.assert_close(found.total.double(), simple.mean() + 0.5 * vb.mean(), rtol=1e-4, atol=0)
    errors = found.per_sample * (1 - found.t).square()  # of the velocity, to those of the noise
    torch.testing.assert_close(errors.double(), simple, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 300])
def test_the_bound_trains_the_variance_alone(k: int) -> None:
    """The noise has the gradient of L_simple, 2 (epsilon_theta - epsilon), and the variance that of L_vb."""
    z0 = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1
    epsilon = torch.full((8, 1, 2, 2), 0.3, requires_grad=True)
    said = torch.linspace(-1, 1, 32).view(8, 1, 2, 2).requires_grad_()
    loss_of(objective(k), z0, lambda x, k: (epsilon, said)).total.backward()
    assert epsilon.grad is not None
    assert said.grad is not None
    noise = drawn(z0).float()
    torch.testing.assert_close(epsilon.grad, 2 * (0.3 - noise) / 32, rtol=1e-3, atol=1e-6)
    steps = torch.full((8, 1, 1, 1), k)

    def moved(by: float) -> Tensor:
        """L_vb of each sample with all outputs of its variance changed."""
        output = epsilon.detach().double(), said.detach().double() + by
        return published(z0, noise.double(), steps, lambda x, k: output)[1]

    slopes = (moved(1e-4) - moved(-1e-4)) / 2e-4 / 8
    torch.testing.assert_close(said.grad.double().flatten(1).sum(1), slopes, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("k", [1, 20, 500])
def test_the_best_variance_is_that_of_the_reverse_process(k: int) -> None:
    """Gaussian data, exact noise: Var(x_{k-1} | x_k) = beta~ + (sqrt(abar') beta / (1 - abar))^2 Var(x_0 | x_k)."""
    mu, std, n = 0.2, 0.4, 20000
    data = std**2 * (1 - ABAR[k]) / (ABAR[k] * std**2 + 1 - ABAR[k])
    best = POSTERIOR[k] + (BEFORE[k].sqrt() * BETA[k] / (1 - ABAR[k])) ** 2 * data
    share = (best / POSTERIOR[k]).log() / (BETA[k] / POSTERIOR[k]).log()
    assert 0 < share < 1
    said = (2 * share - 1).float().requires_grad_()

    def exact(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        gain = (1 - ABAR[k]).sqrt() / (ABAR[k] * std**2 + 1 - ABAR[k])
        return (gain * (x - ABAR[k].sqrt() * mu)).float(), said.expand_as(x)

    z0 = mu + std * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(loss_of(objective(k), z0, exact).parts["vb"], said)
    # d KL / d output = (d / 4) (1 - (1 + g |missed|^2) exp(-s d)): without the factor 0 on average, of order 1 else.
    span = (BETA[k] / POSTERIOR[k]).log().item()
    assert abs(slope.item()) * 4 * math.log(2) / span < 0.02


def test_a_level_of_the_data_has_its_integral_as_its_probability() -> None:
    """All levels together have probability 1, far and narrow distributions included, but for the floor."""
    levels = torch.linspace(-1, 1, 256)
    for mean, std in ((0.0, 0.3), (0.7, 0.01), (-1.4, 0.2), (3.0, 0.05)):
        found = log_probability_of_level(levels, torch.full((256,), mean), torch.full((256,), std))
        assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)
        wanted = level(levels.double(), torch.full((256,), mean).double(), torch.full((256,), std).double())
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


class OfVelocity:
    """A velocity network without another prediction."""

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return z_t


def test_what_does_not_fit_is_said() -> None:
    z0, generator = torch.zeros(2, 1, 2, 2), SampleGenerator(seed=0, keys=torch.arange(2))
    with pytest.raises(
        ValueError, match=r"objective=ddpm needs the timesteps .*UniformTime .* use time=ddpm"
    ):
        NoiseAndVarianceMatching(
            time=UniformTime(), coupling=IndependentCoupling(), weighting=NoiseWeighting()
        )
    plain = NoisePrediction(schedule=VPSchedule())(Network(some_output))
    for network in (OfVelocity(), plain):
        with pytest.raises(ValueError, match=r"objective=ddpm trains a variance .* use experiment=ddpm_base"):
            objective()(network, z0, NOTHING, generator=generator)
    other = NoisePrediction(schedule=VPSchedule(beta_end=0.03), learned_variance=True)(Network(some_output))
    with pytest.raises(
        ValueError, match=r"time\.schedule=1000 betas .* is not that of the model, 1000 betas"
    ):
        objective()(other, z0, NOTHING, generator=generator)
