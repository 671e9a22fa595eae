"""REPA's loss against its formula, with a teacher that is a function of the image."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rfdit.batch import Batch
from rfdit.objective import REPA, ConvolutionProjector, MLPProjector


class Colours:
    """The image itself, averaged over a grid of patches: a feature of each patch."""

    name, width = "colours", 3

    def __init__(self, grid: int = 4) -> None:
        self.grid = grid

    def __call__(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float() / 255 - 0.5, self.grid)


class Identity:
    """No projector: states are compared with the features as they are."""

    def __call__(self, width: int, features: int) -> nn.Module:
        return nn.Identity()


IMAGES = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BATCH = Batch(images=IMAGES, positions=torch.arange(5))


def tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


def repa(**settings: object) -> REPA:
    defaults: dict[str, object] = {"teacher": Colours(), "width": 3, "projector": Identity()}
    return REPA(**(defaults | settings))  # type: ignore[arg-type]


def test_equal_directions_have_the_loss_minus_one_whatever_their_lengths() -> None:
    loss = repa()(7 * tokens(Colours()(IMAGES)), BATCH, grid=(4, 4))
    torch.testing.assert_close(loss, -torch.ones(5))


def test_it_is_the_mean_cosine_of_the_tokens() -> None:
    x = torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(1))
    y = tokens(Colours()(IMAGES))
    by_hand = -((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).mean(1)
    torch.testing.assert_close(repa()(x, BATCH, grid=(4, 4)), by_hand)


def test_each_token_is_compared_with_its_own_place() -> None:
    x = tokens(Colours()(IMAGES))
    assert (repa()(x.roll(1, dims=1), BATCH, grid=(4, 4)) > -0.9).all()
    assert (repa()(x.roll(1, dims=0), BATCH, grid=(4, 4)) > -0.9).all()


def test_features_of_another_grid_are_interpolated() -> None:
    wide = tokens(F.interpolate(Colours(8)(IMAGES), (4, 4), mode="bilinear", align_corners=False))
    loss = repa(teacher=Colours(8))(wide, BATCH, grid=(4, 4))
    torch.testing.assert_close(loss, -torch.ones(5))


def test_the_spatial_norm_is_the_papers() -> None:
    y = tokens(Colours()(IMAGES))
    normed = (y - 0.8 * y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 1e-6)
    loss = repa(spatial_norm=0.8)(normed, BATCH, grid=(4, 4))
    torch.testing.assert_close(loss, -torch.ones(5))


@pytest.mark.parametrize("projector", [MLPProjector(hidden=8), ConvolutionProjector()])
def test_projector_and_states_have_gradients(projector: object) -> None:
    torch.manual_seed(0)
    loss = repa(width=6, projector=projector)
    x = torch.randn(5, 16, 6, requires_grad=True)
    loss(x, BATCH, grid=(4, 4)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_a_convolution_sees_neighbours_and_the_mlp_does_not() -> None:
    torch.manual_seed(0)
    for projector, sees in ((MLPProjector(hidden=8), False), (ConvolutionProjector(), True)):
        h = projector(2, 3)
        one, other = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
        other[0, :, 1, 1] = 1
        assert bool((h(one)[..., 1, 2] != h(other)[..., 1, 2]).any()) is sees


def test_it_is_over_from_its_stop_step_on() -> None:
    assert [repa(stop_step=3).is_over(step) for step in (2, 3, 4)] == [False, True, True]
    assert not repa().is_over(10**9)


def test_cached_features_are_those_of_the_images() -> None:
    x = torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(1))
    cached = Batch(images=None, positions=torch.arange(5), features=Colours()(IMAGES))
    assert torch.equal(repa()(x, cached, grid=(4, 4)), repa()(x, BATCH, grid=(4, 4)))
    with pytest.raises(
        ValueError, match=r"these cached latents have neither; encode again with auxiliary/teacher"
    ):
        repa()(x, Batch(images=None, positions=torch.arange(5)), grid=(4, 4))
