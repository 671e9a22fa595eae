"""Reflow against the closed form of Gaussian data: recorded pairs, the field that they have, and one step of it."""

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.flow import per_sample
from rfdit.objective import IndependentCoupling, RecordedCoupling, StepTime, UniformTime, VelocityMatching
from rfdit.randomness import START, SampleGenerator
from rfdit.sampler import Heun, NoGuidance, Sampler
from rfdit.sampler.straightness import straightness
from tests.support.models.fields import MEAN, STD, GaussianBackbone, means

SEEDS, KEYS = torch.tensor([0, 7, 2**62, 7]), torch.tensor([3, 3, 0, 2**40])
COND = means(4, MEAN)
SHAPE = (2, 4, 4)


def sampling(row: int) -> SampleGenerator:
    """The generator of one image, as sampling makes it."""
    return SampleGenerator(seed=int(SEEDS[row]), keys=KEYS[row : row + 1])


def training() -> SampleGenerator:
    """The generator of a batch of these images, which have positions of their own in the stream."""
    recorded = SampleGenerator(seed=SEEDS, keys=KEYS)
    return SampleGenerator(seed=5, keys=torch.arange(10, 14), purpose="train", recorded=recorded)


def reflowed(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """The velocity of the pairs z0 = mean + std z1: z_t tells z1 = (z_t - (1 - t) mean) / (std + t (1 - std))."""
    t = per_sample(t, z_t)
    return -MEAN + (1 - STD) * (z_t - (1 - t) * MEAN) / (STD + t * (1 - STD))


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    """Data and noise, of the flow of the Gaussian oracle."""
    z1 = torch.cat([sampling(row).fork(START).normal(*SHAPE) for row in range(4)])
    return Sampler(solver=Heun(), guidance=NoGuidance(), steps=400)(GaussianBackbone(), z1, COND, COND), z1


def test_the_noise_is_that_of_sampling(pairs: tuple[Tensor, Tensor]) -> None:
    """To the last bit, for images of several seeds in one batch."""
    z0, z1 = pairs
    assert torch.equal(RecordedCoupling()(z0, COND, generator=training()), z1)
    torch.testing.assert_close(z0, MEAN + STD * z1, atol=1e-3, rtol=0)


def test_latents_without_a_record_are_refused(pairs: tuple[Tensor, Tensor]) -> None:
    alone = SampleGenerator(seed=5, keys=torch.arange(4))
    with pytest.raises(ValueError, match=r"^coupling=recorded needs latents together with the noise"):
        RecordedCoupling()(pairs[0], COND, generator=alone)


@pytest.mark.parametrize("time", [UniformTime(), StepTime(steps=1), StepTime(steps=4)])
def test_the_field_of_the_pairs_has_no_loss(
    pairs: tuple[Tensor, Tensor], time: UniformTime | StepTime
) -> None:
    """And that of the flow which made them has one, as have these pairs with other noise."""
    matching = VelocityMatching(time=time, coupling=RecordedCoupling())
    loss = matching(reflowed, pairs[0], COND, generator=training())
    assert loss.per_sample.max() < 1e-5
    assert matching(GaussianBackbone(), pairs[0], COND, generator=training()).total > 0.05
    other = VelocityMatching(time=time, coupling=IndependentCoupling())
    assert other(reflowed, pairs[0], COND, generator=training()).total > 0.05


def test_paths_are_straighter_and_one_step_is_enough(pairs: tuple[Tensor, Tensor]) -> None:
    z0, z1 = pairs
    first, second = (NoGuidance()(field, COND, COND) for field in (GaussianBackbone(), reflowed))
    before, after = (straightness(field, z1, steps=50).mean() for field in (first, second))
    assert after < 1e-6 < 1e-2 < before
    one = torch.ones(())
    errors = [(z1 - field(z1, one) - z0).square().mean() for field in (first, second)]
    assert errors[1] < 1e-5 < 1e-2 < errors[0]
