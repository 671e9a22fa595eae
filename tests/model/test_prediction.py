"""Every prediction is the velocity network that its paper's formulas make of it; the oracle is Gaussian data."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rfdit import flow
from rfdit.batch import Condition
from rfdit.flow import per_sample
from rfdit.model import (
    CosineVelocityPrediction,
    DataPrediction,
    DiT,
    EDMPrediction,
    NoisePrediction,
    Prediction,
    VelocityPrediction,
    VPSchedule,
)
from rfdit.model.prediction import PredictingNetwork
from rfdit.objective import (
    DataWeighting,
    EDMWeighting,
    IndependentCoupling,
    LogitNormalTime,
    NoiseWeighting,
    UniformTime,
    UniformWeighting,
    VelocityMatching,
    Weighting,
)
from rfdit.protocols import class_name
from rfdit.randomness import SampleGenerator
from rfdit.sampler import RK4, Euler, NoGuidance, Sampler, Solver
from tests.support.models.fields import gaussian_velocity
from tests.support.models.networks import DiTFactory

MU, STD, SIGMA = 0.7, 0.4, 0.5
ABAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
NOTHING = Condition(pooled=torch.zeros(1, 1))
Estimate = Callable[[Tensor, Tensor], Tensor]


class Exact(nn.Module):
    """The exact output for data N(MU, STD^2) in the coordinates of a method's own paper; t: (b, 1, 1, 1)."""

    patch_size, width = 1, 1

    def __init__(self, estimate: Estimate) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.estimate = estimate

    def forward(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.estimate(z, per_sample(t, z))


def data(z: Tensor, t: Tensor) -> Tensor:
    """E[z0 | z_t] on the straight path."""
    gain = (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
    return MU + gain * (z - (1 - t) * MU)


def noise(x: Tensor, t: Tensor) -> Tensor:
    """E[epsilon | x] of DDPM, at timestep 1000 t."""
    k = (1000 * t).double()
    low, high = ABAR[k.floor().long()], ABAR[k.ceil().long()]
    ratio = lambda abar: ((1 - abar) / abar).log()  # noqa: E731  minus the log of the signal-to-noise ratio
    abar = torch.sigmoid(-torch.lerp(ratio(low), ratio(high), k - k.floor()))
    gain = (1 - abar).sqrt() / (abar * STD**2 + 1 - abar)
    return (gain * (x - abar.sqrt() * MU)).float()


def mixture(x: Tensor, t: Tensor) -> Tensor:
    """EDM's F = (D(x; sigma) - c_skip x) / c_out, of its scaled input c_in x (table 1)."""
    t, x = t.double().clamp(1e-6, 1 - 1e-6), x.double()
    sigma = t / (1 - t)
    c_in = 1 / (sigma**2 + SIGMA**2).sqrt()
    c_skip, c_out = SIGMA**2 / (sigma**2 + SIGMA**2), sigma * SIGMA * c_in
    x = x / c_in
    denoised = MU + STD**2 / (STD**2 + sigma**2) * (x - MU)
    return ((denoised - c_skip * x) / c_out).float()


def cosine(x: Tensor, s: Tensor) -> Tensor:
    """E[dx/ds | x] for x = cos(pi s / 2) z0 + sin(pi s / 2) z1."""
    alpha, sigma = torch.cos(torch.pi * s / 2), torch.sin(torch.pi * s / 2)
    variance = alpha**2 * STD**2 + sigma**2
    z0 = MU + alpha * STD**2 / variance * (x - alpha * MU)
    z1 = sigma / variance * (x - alpha * MU)
    return torch.pi / 2 * (alpha * z1 - sigma * z0)


PREDICTIONS: dict[str, tuple[Prediction, Estimate, Weighting]] = {
    "velocity": (VelocityPrediction(), lambda z, t: gaussian_velocity(z, t, MU, STD), UniformWeighting()),
    "data": (DataPrediction(t_min=0.05), data, DataWeighting()),
    "noise": (NoisePrediction(schedule=VPSchedule()), noise, NoiseWeighting()),
    "cosine": (CosineVelocityPrediction(), cosine, UniformWeighting()),
    "edm": (EDMPrediction(sigma_data=SIGMA), mixture, EDMWeighting(sigma_data=SIGMA)),
}
every = pytest.mark.parametrize("name", PREDICTIONS)


def exact(name: str) -> nn.Module:
    prediction, estimate, _ = PREDICTIONS[name]
    network = prediction(Exact(estimate))
    assert isinstance(network, nn.Module)
    return network


@every
def test_the_exact_output_is_the_exact_velocity(name: str) -> None:
    t = torch.tensor([0.06, 0.2, 0.5, 0.8, 0.99])
    z = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    v = gaussian_velocity(z, per_sample(t, z), MU, STD)
    torch.testing.assert_close(exact(name)(z, t, NOTHING), v, atol=1e-4, rtol=1e-4)


@every
@pytest.mark.parametrize(("solver", "steps"), [(Euler(), 1000), (RK4(), 40)])
def test_every_solver_follows_the_flow(name: str, solver: Solver, steps: int) -> None:
    """z0 = MU + STD z1, but for the ends: beyond the last timestep of a VP schedule, and below t_min."""
    z1 = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    found = Sampler(solver=solver, guidance=NoGuidance(), steps=steps)(exact(name), z1, NOTHING, NOTHING)
    lost = 0.05 / 2 * (z1 - MU - STD * z1).abs().max() if name == "data" else 0.0
    assert (found - (MU + STD * z1)).abs().max() < 0.005 + lost


def loss(network: nn.Module, z0: Tensor, weighting: Weighting = PREDICTIONS["velocity"][2]) -> Tensor:
    objective = VelocityMatching(time=UniformTime(), coupling=IndependentCoupling(), weighting=weighting)
    generator = SampleGenerator(seed=0, keys=torch.arange(len(z0)))
    return objective(network, z0, NOTHING, generator=generator).total


@pytest.mark.parametrize("name", ["velocity", "data", "edm"])  # a network of noise knows z0 by x and t alone
def test_the_target_is_that_of_the_exact_output(name: str) -> None:
    """With one data point the output is known at every t, clamped ones included: there is no loss."""
    z0, (prediction, *_) = torch.full((400, 1, 2, 2), MU), PREDICTIONS[name]
    point = {
        "velocity": lambda z, t: (z - MU) / t,
        "data": lambda z, t: torch.full_like(z, MU),
        "edm": lambda x, t: mixture_of_a_point(x, t),
    }
    assert loss(prediction(Exact(point[name])), z0) < 1e-6  # type: ignore[arg-type]


def test_the_loss_of_data_is_jits() -> None:
    """JiT's own: t' = 1 - t, z = t' x + (1 - t') e, and both velocities over max(1 - t', t_min)."""
    z0, keys = torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(2)), torch.arange(64)
    output = torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    network = DataPrediction(t_min=0.5)(Exact(lambda z, t: output))
    objective = VelocityMatching(
        time=LogitNormalTime(mean=0.8, std=0.8), coupling=IndependentCoupling(), weighting=UniformWeighting()
    )
    found = objective(network, z0, NOTHING, generator=SampleGenerator(seed=0, keys=keys))  # type: ignore[arg-type]
    generator = SampleGenerator(seed=0, keys=keys)
    normal = generator.fork("time").normal()
    theirs = torch.sigmoid(-0.8 - 0.8 * normal).view(-1, 1, 1, 1)  # their mean and standard deviation
    noise = generator.fork("noise").normal(3, 2, 2)
    z = theirs * z0 + (1 - theirs) * noise
    divisor = (1 - theirs).clamp_min(0.5)
    assert (divisor == 0.5).any()
    expected = ((z0 - z) / divisor - (output - z) / divisor).square().mean()
    torch.testing.assert_close(found.total, expected)
    gradients = [torch.autograd.grad(loss, output)[0] for loss in (found.total, expected)]
    torch.testing.assert_close(*gradients)


def mixture_of_a_point(x: Tensor, t: Tensor) -> Tensor:
    scale = (t**2 + (1 - t) ** 2 * SIGMA**2).sqrt()
    z1 = (x * scale - (1 - t) * MU) / t
    return (t * MU / SIGMA - (1 - t) * SIGMA * z1) / scale


@pytest.mark.parametrize("name", ["velocity", "data", "noise", "edm"])
def test_a_prediction_has_its_own_loss_under_its_own_weighting(name: str) -> None:
    """An output that is wrong by 1 everywhere has the loss 1; data's clamp divides by more than t."""
    z0 = torch.full((4000, 1, 1, 1), MU)
    prediction, _, weighting = PREDICTIONS[name]

    class Wrong(Exact):
        """The exact output of the pair, which a network cannot know, and 1."""

        def forward(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
            return output + 1

    generator = SampleGenerator(seed=0, keys=torch.arange(len(z0)))
    z1, t = generator.fork("noise").normal(1, 1, 1), UniformTime()(generator.fork("time"))
    network = prediction(Wrong(data))
    formulas = network.prediction if isinstance(network, PredictingNetwork) else None
    output = flow.velocity(z0, z1) if formulas is None else formulas.quantity(z0, z1, t)
    tolerance = {"data": 0.06, "noise": 0.01}.get(name, 1e-4)  # t < t_min; t beyond the schedule's end
    assert loss(network, z0, weighting).item() == pytest.approx(1, abs=tolerance)


def test_edms_weighting_is_the_papers() -> None:
    """(sigma^2 + s^2) / (sigma s)^2 on the data's loss, which is t^2 times the velocity's."""
    t = torch.tensor([0.1, 0.5, 0.9])
    sigma = t / (1 - t)
    paper = (sigma**2 + SIGMA**2) / (sigma * SIGMA) ** 2 * t**2
    torch.testing.assert_close(EDMWeighting(sigma_data=SIGMA)(t), paper)


def test_edms_output_has_unit_variance() -> None:
    z0, z1 = SIGMA * torch.randn(1000, 1, 4, 4), torch.randn(1000, 1, 4, 4)
    for t in (0.05, 0.3, 0.7, 0.99):
        times = torch.full((1000,), t)
        prediction = EDMPrediction(sigma_data=SIGMA)
        given, _ = prediction.inputs(flow.interpolate(z0, z1, times), times)
        for numbers in (given, prediction.quantity(z0, z1, times)):
            assert numbers.std().item() == pytest.approx(1, abs=0.03)


@every
def test_weights_keep_their_names(name: str, dit: DiTFactory) -> None:
    network = dit()
    wrapped = PREDICTIONS[name][0](network)
    assert isinstance(wrapped, nn.Module)
    assert list(wrapped.state_dict()) == list(network.state_dict())
    assert [n for n, _ in wrapped.named_parameters()] == [n for n, _ in network.named_parameters()]
    assert all(a is b for a, b in zip(wrapped.parameters(), network.parameters(), strict=True))
    assert (wrapped.blocks, wrapped.width, wrapped.patch_size, wrapped.inputs) == (
        network.blocks,
        network.width,
        network.patch_size,
        network.inputs,
    )
    assert class_name(wrapped) == "DiT"
    assert (wrapped is network) == (name == "velocity")


@pytest.mark.parametrize("name", ["data", "noise", "cosine", "edm"])
def test_it_is_one_module_with_its_network(
    name: str, dit: DiTFactory, inputs: Callable[..., tuple[Tensor, Tensor, Condition]]
) -> None:
    """Copies, modes, dtypes and replaced layers of one are those of the other."""
    wrapped = PREDICTIONS[name][0](dit())
    assert isinstance(wrapped, PredictingNetwork)
    before = wrapped(*inputs())
    other = copy.deepcopy(wrapped)
    assert torch.equal(other(*inputs()), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.equal(other(*inputs()), before)
    assert torch.equal(wrapped(*inputs()), before)
    wrapped.eval()
    assert not wrapped.network.training  # type: ignore[attr-defined]
    assert isinstance(wrapped.network, DiT)
    wrapped.final = nn.Identity()
    assert isinstance(wrapped.network.final, nn.Identity)
    assert {p.dtype for p in wrapped.double().network.parameters()} == {torch.float64}


def test_timesteps_are_those_of_the_schedule() -> None:
    schedule = VPSchedule()
    ratio = ((1 - ABAR) / ABAR).sqrt()
    t = (ratio / (1 + ratio)).float()
    assert torch.equal(schedule.timestep(t), torch.arange(1000.0))
    assert torch.equal(schedule.timestep(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 999.0]))
    between = schedule.timestep((t[1:] + t[:-1]) / 2)
    assert ((between > torch.arange(999)) & (between < torch.arange(1, 1000))).all()


def test_the_number_of_channels_is_checked(
    dit: DiTFactory, inputs: Callable[..., tuple[Tensor, Tensor, Condition]]
) -> None:
    wrapped = NoisePrediction(schedule=VPSchedule(), learned_variance=True)(dit())
    with pytest.raises(
        ValueError, match=r"model gives 3 channels for latents of 3, and prediction\.learned_v"
    ):
        wrapped(*inputs())


@pytest.mark.parametrize("betas", [(0.02, 1e-4), (0.0, 0.5), (0.1, 1.0)])
def test_betas_must_rise(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"schedule\.beta_start=.* must be above 0, below 1"):
        VPSchedule(beta_start=betas[0], beta_end=betas[1])


@pytest.mark.parametrize("t_min", [0.0, 1.0])
def test_t_min_is_a_time(t_min: float) -> None:
    with pytest.raises(ValueError, match=r"prediction\.t_min=.* must lie between 0 and 1"):
        DataPrediction(t_min=t_min)
