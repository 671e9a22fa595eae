"""The stochastic sampler has the flow's distribution, and each sample its own noise."""

import pytest
import torch

from rfdit.randomness import SampleGenerator
from rfdit.sampler import (
    ConstantDiffusion,
    DecreasingDiffusion,
    Diffusion,
    Euler,
    EulerMaruyama,
    LastStepGrid,
    NoGuidance,
    Sampler,
    SigmaDiffusion,
    SineDiffusion,
)
from tests.support.models.fields import MEAN, STD, GaussianBackbone, means

DIFFUSIONS = [
    SigmaDiffusion(),
    SigmaDiffusion(scale=4.0),
    ConstantDiffusion(scale=0.5),
    SineDiffusion(),
    DecreasingDiffusion(),
]


def generator(*keys: int, seed: int = 0) -> SampleGenerator:
    return SampleGenerator(seed=seed, keys=torch.tensor(keys))


def sampled(
    diffusion: Diffusion, generator: SampleGenerator, steps: int = 200, **settings: object
) -> torch.Tensor:
    sampler = Sampler(
        solver=EulerMaruyama(diffusion=diffusion), guidance=NoGuidance(), steps=steps, **settings
    )
    n = len(generator.keys)
    noise = generator.fork("image").normal(2, 4, 4)
    z0 = sampler(GaussianBackbone(), noise, means(n, MEAN), means(n, 0.0), generator=generator.fork("sde"))
    assert sampler.evaluations == steps
    return z0


@pytest.mark.parametrize("diffusion", DIFFUSIONS, ids=lambda d: f"{type(d).__name__}-{d.scale}")
def test_a_gaussian_is_reproduced(diffusion: Diffusion) -> None:
    """Mean, standard deviation and kurtosis of 16,384 numbers; and they are not the ODE's."""
    z0 = sampled(diffusion, generator(*range(512)))
    x = (z0 - MEAN) / STD
    assert x.mean().item() == pytest.approx(0, abs=0.05)
    assert x.std().item() == pytest.approx(1, abs=0.03)
    assert (x**4).mean().item() == pytest.approx(3, abs=0.4)
    started = generator(*range(512)).fork("image").normal(2, 4, 4)
    assert torch.corrcoef(torch.stack([x.flatten(), started.flatten()]))[0, 1] < 0.95


@pytest.mark.parametrize(
    ("diffusion", "expected"),
    [
        (SigmaDiffusion(scale=2.0), [0.0, 0.5, 1.0, 2.0]),
        (ConstantDiffusion(scale=2.0), [2.0, 2.0, 2.0, 2.0]),
        (SineDiffusion(scale=2.0), [0.0, 1.0, 2.0, 0.0]),
        (DecreasingDiffusion(scale=2.0), [0.0, 2 * 0.1464466**2, 0.5, 2.0]),
    ],
)
def test_diffusion_coefficients(diffusion: Diffusion, expected: list[float]) -> None:
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(diffusion(t), torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_without_diffusion_it_is_eulers_method() -> None:
    stochastic = sampled(SigmaDiffusion(scale=0.0), generator(0, 1), steps=10)
    euler = Sampler(solver=Euler(), guidance=NoGuidance(), steps=10)
    noise = generator(0, 1).fork("image").normal(2, 4, 4)
    torch.testing.assert_close(stochastic, euler(GaussianBackbone(), noise, means(2, MEAN), means(2, 0.0)))


def test_a_step_is_the_formula() -> None:
    """The score is that of N((1 - t) MEAN, (1 - t)^2 STD^2 + t^2), the density at t."""
    z, noise = torch.randn(2, 3, 1, 2, 2).double()
    t, t_next = torch.tensor(0.6).double(), torch.tensor(0.5).double()
    backbone, cond = GaussianBackbone(), means(3, MEAN)

    def field(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return backbone(z, t.expand(3), cond)

    score = -(z - 0.4 * MEAN) / (0.16 * STD**2 + 0.36)
    w = 3 * 0.6
    expected = z - 0.1 * (field(z, t) - w / 2 * score) + (w * 0.1) ** 0.5 * noise
    solver = EulerMaruyama(diffusion=SigmaDiffusion(scale=3.0))
    torch.testing.assert_close(solver.noisy_step(field, z, t, t_next, noise), expected, atol=1e-6, rtol=0)


def test_the_last_step_goes_to_the_posterior_mean_without_noise() -> None:
    z, t = torch.randn(3, 1, 2, 2), torch.tensor(0.04)
    backbone, cond = GaussianBackbone(), means(3, MEAN)
    solver = EulerMaruyama(diffusion=ConstantDiffusion())
    field = lambda z, t: backbone(z, t.expand(3), cond)  # noqa: E731
    steps = [solver.noisy_step(field, z, t, torch.tensor(0.0), torch.randn_like(z)) for _ in range(2)]
    assert torch.equal(*steps)
    gain = 0.96 * STD**2 / (0.96**2 * STD**2 + 0.04**2)
    torch.testing.assert_close(steps[0], MEAN + gain * (z - 0.96 * MEAN), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("last_step", ["euler", "tweedie", "mean", "none"])
def test_the_forms_of_the_last_step(last_step: str) -> None:
    """SiT's (transport.py of its repository): Tweedie's is written with the score."""
    z, noise = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    t, cond, w = torch.tensor(0.04).double(), means(3, MEAN), 2 * 0.04
    v = GaussianBackbone()(z, t.expand(3), cond)
    score = -(z - 0.96 * MEAN) / (0.96**2 * STD**2 + 0.04**2)
    drift = z - 0.04 * (v - w / 2 * score)
    expected = {
        "euler": z - 0.04 * v,
        "tweedie": z / 0.96 + 0.04**2 / 0.96 * score,
        "mean": drift,
        "none": drift + (w * 0.04) ** 0.5 * noise,
    }
    solver = EulerMaruyama(diffusion=SigmaDiffusion(scale=2.0), last_step=last_step)
    found = solver.noisy_step(lambda z, t: v, z, t, torch.zeros_like(t), noise)
    torch.testing.assert_close(found, expected[last_step], atol=1e-6, rtol=0)


def test_images_do_not_depend_on_the_batch() -> None:
    together = sampled(SigmaDiffusion(), generator(0, 1, 2, 3), steps=20)
    torch.testing.assert_close(sampled(SigmaDiffusion(), generator(2, 1), steps=20), together[[2, 1]])
    assert not torch.allclose(sampled(SigmaDiffusion(), generator(1, 2, seed=1), steps=20), together[1:3])


def test_each_step_has_its_own_noise() -> None:
    """The same noise at every step would add up: the deviation would be far too large."""
    spread = [
        sampled(
            ConstantDiffusion(scale=0.5), generator(*range(256)), steps=n, grid=LastStepGrid(size=0.05)
        ).std()
        for n in (20, 80)
    ]
    assert spread[0].item() == pytest.approx(STD, rel=0.1)
    assert spread[1].item() == pytest.approx(STD, rel=0.1)


def test_noise_needs_a_generator() -> None:
    sampler = Sampler(solver=EulerMaruyama(diffusion=SigmaDiffusion()), guidance=NoGuidance(), steps=2)
    with pytest.raises(ValueError, match="call the sampler with a generator"):
        sampler(GaussianBackbone(), torch.zeros(1, 1, 2, 2), means(1, MEAN), means(1, 0.0))


@pytest.mark.parametrize("diffusion", [SigmaDiffusion, ConstantDiffusion, SineDiffusion, DecreasingDiffusion])
def test_a_negative_diffusion_is_refused(diffusion: type) -> None:
    with pytest.raises(ValueError, match=r"diffusion\.scale=-1\.0 must be at least 0 and finite"):
        diffusion(scale=-1.0)
