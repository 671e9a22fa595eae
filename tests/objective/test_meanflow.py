"""MeanFlow against closed forms: the identity, its fixed points with and without guidance, and derivatives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import rfdit.objective.meanflow
from rfdit import flow
from rfdit.batch import Condition
from rfdit.flow import per_sample
from rfdit.model import DataPrediction, DiT, Flux, MMDiT
from rfdit.model.layers.attention import Attention
from rfdit.objective import (
    IndependentCoupling,
    LogitNormalTime,
    MeanFlow,
    UncertaintyWeighting,
    UniformTime,
    VelocityMatching,
)
from rfdit.objective.meanflow import total_derivative
from rfdit.protocols import FlowLoss
from rfdit.randomness import SampleGenerator
from tests.support.models.fields import GaussianMeanBackbone, gaussian_velocity, means

MU, STD, N = 0.7, 0.4, 20000


class Fixed:
    """The same time for all samples."""

    def __init__(self, t: float) -> None:
        self.t = t

    def __call__(self, generator: SampleGenerator) -> Tensor:
        return torch.full((len(generator.keys),), self.t)


def objective(**settings: Any) -> MeanFlow:
    return MeanFlow(**{"time": UniformTime(), "coupling": IndependentCoupling()} | settings)


def keyed(n: int) -> SampleGenerator:
    return SampleGenerator(seed=0, keys=torch.arange(n))


def gaussian_data(n: int = N) -> Tensor:
    return MU + STD * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))


class Moved:
    """Another network times `scale`, plus `shift`."""

    durations = True

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network = network
        self.scale = torch.ones((), requires_grad=True)
        self.shift = torch.zeros((), requires_grad=True)

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.scale * self.network(z_t, t, cond) + self.shift


def slopes(one: MeanFlow, network: Callable[..., Tensor], **given: Any) -> Tensor:
    """The gradients of the mean loss of a latent dimension by the scale and the shift of a network."""
    moved = Moved(network)
    loss = one(moved, gaussian_data(), means(N, MU), generator=keyed(N), **given)
    return torch.stack(torch.autograd.grad(loss.total / 4, [moved.scale, moved.shift]))


def test_the_target_of_the_mean_velocity_is_itself() -> None:
    """With the velocity of the flow in place of a sample's, at all r <= t; not with the other sign."""
    z, t = 2 * torch.randn(64, 1, 2, 2), torch.rand(64) * 0.98 + 0.01
    duration = t * torch.rand(64)
    network, cond = GaussianMeanBackbone(STD), means(64, MU)
    v = gaussian_velocity(z, per_sample(t, z), MU, STD)
    u, du = (
        network(z, t, replace(cond, duration=duration)),
        total_derivative(network, z, t, cond, duration, v),
    )
    torch.testing.assert_close(v - per_sample(duration, z) * du, u, rtol=1e-4, atol=1e-5)
    assert (v + per_sample(duration, z) * du - u).abs().max() > 0.5


@pytest.mark.parametrize("tangent", ["sample", "prediction"])
def test_the_mean_velocity_has_no_gradient_on_average(tangent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = objective(equal=0.25, tangent=tangent, power=0.0)
    assert slopes(one, GaussianMeanBackbone(STD)).abs().max() < 0.03
    monkeypatch.setattr(rfdit.objective.meanflow, "total_derivative", lambda *args: -total_derivative(*args))
    assert slopes(one, GaussianMeanBackbone(STD)).abs().max() > 0.2


def test_at_equal_times_it_is_velocity_matching() -> None:
    z0, cond = gaussian_data(32), means(32, MU)
    network = GaussianMeanBackbone(0.3)
    mine = objective(time=Fixed(0.6), equal=1.0, power=0.0)(network, z0, cond, generator=keyed(32))
    plain = VelocityMatching(time=Fixed(0.6), coupling=IndependentCoupling())(
        network, z0, cond, generator=keyed(32)
    )
    assert torch.equal(mine.t, plain.t)
    assert torch.equal(mine.per_sample, plain.per_sample)
    torch.testing.assert_close(mine.total, 4 * plain.total)  # the sum of a sample's four dimensions
    assert torch.equal(mine.parts["unweighted"], plain.total)


def test_the_factor_evens_out_samples_and_has_no_gradient() -> None:
    moved, z0 = Moved(GaussianMeanBackbone(0.3)), gaussian_data(32)
    one = objective(equal=1.0, power=0.5, epsilon=0.1, weighting=lambda t: 2 * t)
    loss = one(moved, z0, means(32, MU), generator=keyed(32))
    squares = 4 * loss.per_sample
    torch.testing.assert_close(loss.total, (2 * loss.t * squares / (squares + 0.1).sqrt()).mean())
    (slope,) = torch.autograd.grad(loss.total, moved.shift)
    z1, t = keyed(32).fork("noise").normal(1, 2, 2), per_sample(loss.t, z0)
    z_t = flow.interpolate(z0, z1, loss.t)
    missed = gaussian_velocity(z_t, t, MU, 0.3) - (z1 - z0)
    factor = per_sample(2 * loss.t / (squares + 0.1).sqrt(), z0)
    torch.testing.assert_close(slope, (factor * 2 * missed).sum() / 32)


def test_times_are_in_order_and_often_equal() -> None:
    t, r = objective(time=LogitNormalTime(), equal=0.75).times(keyed(4000))
    assert (r <= t).all()
    assert abs((r == t).float().mean() - 0.75) < 0.03
    # The later one of two has the distribution P(t < x)^2, whether the other is used or not.
    assert abs((t < 0.5).float().mean() - 0.25) < 0.03
    every, _ = objective(time=Fixed(0.5), shift=3.0).times(keyed(4))
    torch.testing.assert_close(every, torch.full((4,), 0.75))


class Guided:
    """The velocity of data N(m, STD^2), m the condition, under guidance of a scale; that of N(0, 1) without one."""

    durations = True

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        t, mean = per_sample(t, z_t), per_sample(cond.pooled[:, 0], z_t)
        plain = gaussian_velocity(z_t, t, 0.0, 1.0)
        guided = plain + self.scale * (gaussian_velocity(z_t, t, mean, STD) - plain)
        return torch.where(mean == 0, plain, guided)


@pytest.mark.parametrize(
    ("omega", "kappa", "scale"), [(3.0, 0.0, 3.0), (1.0, 0.5, 2.0), (0.2, 0.92, 2.5), (1.0, 0.75, 4.0)]
)
def test_the_fixed_point_of_guidance_is_the_guided_velocity(omega: float, kappa: float, scale: float) -> None:
    one = objective(equal=1.0, power=0.0, omega=omega, kappa=kappa)
    given = {"null": means(N, 0.0), "kept": torch.ones(N, dtype=torch.bool)}
    assert one.guided
    assert slopes(one, Guided(scale), **given).abs().max() < 0.05 * omega
    assert slopes(one, Guided(1.0), **given).abs().max() > 0.1


def test_guidance_is_of_samples_with_a_condition_within_its_times() -> None:
    z0, cond = gaussian_data(64), means(64, MU)
    null, kept = means(64, 0.0), torch.arange(64) % 2 == 0
    plain = objective()(Guided(1.0), z0, cond, generator=keyed(64))
    assert not objective(omega=1.0, kappa=0.0).guided
    one = objective(omega=2.0, kappa=0.1, low=0.3, high=0.8)
    loss = one(Guided(1.0), z0, cond, generator=keyed(64), null=null, kept=kept)
    guided = kept & (loss.t >= 0.3) & (loss.t <= 0.8)
    assert guided.any()
    assert torch.equal(loss.per_sample != plain.per_sample, guided)


SMALL: dict[str, Any] = {
    "width": 32, "depth": 2, "num_heads": 2, "patch_size": 2, "in_channels": 3, "input_size": 8, "durations": True,
}  # fmt: skip
TEXT = Condition(torch.randn(3, 10), torch.randn(3, 5, 12), torch.arange(5).expand(3, 5) < 4)


def drawn(network: nn.Module) -> nn.Module:
    """With weights other than those at the start, and embeddings of time that differences resolve."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.08)
    for embedding in (network.time, network.time.duration):
        embedding.scale = 20.0
    return network


@pytest.mark.parametrize("kind", ["dit", "mmdit", "flux"])
def test_the_derivative_is_that_of_differences(kind: str) -> None:
    torch.manual_seed(0)
    captioned = {"pooled_width": 10, "token_width": 12}
    network = drawn(
        {"dit": DiT, "mmdit": MMDiT, "flux": Flux}[kind](**SMALL, **({} if kind == "dit" else captioned))
    )
    cond = Condition(torch.randn(3, 32)) if kind == "dit" else TEXT
    z, v, t = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8), torch.rand(3) / 2 + 0.5
    duration = t * torch.rand(3)

    def at(step: float) -> Tensor:
        with torch.no_grad():
            return network(z + step * v, t + step, replace(cond, duration=duration + step))

    found = total_derivative(network, z, t, cond, duration, v)
    torch.testing.assert_close(found, (at(1e-3) - at(-1e-3)) / 2e-3, rtol=1e-2, atol=2e-3)
    for block in network.blocks:
        block.recompute = "full"
    assert torch.equal(total_derivative(network, z, t, cond, duration, v), found)


@pytest.mark.slow
def test_compiled_code_is_differentiated_as_it_is_written() -> None:
    ran = 0

    def compiler(graph: Callable[..., Any], inputs: Any) -> Callable[..., Any]:
        def run(*args: Tensor) -> Any:
            nonlocal ran
            ran += 1
            return graph(*(forward_ad.unpack_dual(each).primal for each in args))

        return run

    compiled = torch.compile(lambda z: 2 * z.sin(), backend=compiler)
    z, v, t = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2), torch.rand(3)
    with torch.no_grad():
        compiled(z)
        found = total_derivative(lambda z_t, t, cond: compiled(z_t), z, t, means(3, MU), t / 2, v)
        compiled(z)
    torch.testing.assert_close(found, 2 * z.cos() * v)
    assert ran == 2


def test_in_bf16_every_weight_has_its_gradient() -> None:
    """Autocast keeps no weights that it has cast for the passes without gradients."""
    network = drawn(DiT(**SMALL))
    z0, cond = torch.randn(3, 3, 8, 8), Condition(torch.randn(3, 32))
    given = {"null": Condition(torch.zeros(3, 32)), "kept": torch.ones(3, dtype=torch.bool)}
    one = objective(omega=2.0, kappa=0.3, equal=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = one(network, z0, cond, generator=keyed(3), **given)
    loss.total.backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
    assert loss.total.dtype == torch.float32


class Rounded(torch.autograd.Function):
    """An operation without a forward derivative."""

    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        return q.clone()


class OwnAttention:
    """An attention by a kernel of its own."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return Rounded.apply(q)


def test_what_does_not_fit_is_said() -> None:
    z0, cond = torch.zeros(2, 3, 8, 8), Condition(torch.zeros(2, 32))

    def loss(**settings: Any) -> FlowLoss:
        return objective()(DiT(**SMALL | settings), z0, cond, generator=keyed(2))

    with pytest.raises(
        ValueError, match=r"objective=meanflow trains mean velocities, .* model\.durations=true"
    ):
        loss(durations=False)
    own: Attention = OwnAttention()
    with pytest.raises(ValueError, match="needs the forward derivative of every layer, and one has none"):
        loss(attention=own)
    with pytest.raises(ValueError, match=r"which other predictions do not state; use prediction=velocity"):
        objective()(DataPrediction()(DiT(**SMALL)), z0, cond, generator=keyed(2))
    with pytest.raises(ValueError, match="weighting=learned evens out losses, which objective=meanflow"):
        objective(weighting=UncertaintyWeighting())
    with pytest.raises(ValueError, match=r"objective\.omega=1\.0, kappa=1\.0 must be above 0"):
        objective(kappa=1.0)
    with pytest.raises(ValueError, match=r"objective\.low=0\.5, high=0\.5 must be an interval"):
        objective(low=0.5, high=0.5)
