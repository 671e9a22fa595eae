"""Rotary positions: relative, separate along the axes, and the two conventions as diffusers has them."""

import math

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from torch import Tensor

from rfdit.model.layers.rope import Order, RotaryPositions, even_axes, rotation_at

ORDERS: list[Order] = ["interleaved", "halves"]
CPU = torch.device("cpu")
GRID = torch.cartesian_prod(torch.arange(3), torch.arange(4)).float()  # (12, 2): rows, columns


def scores(coordinates: Tensor, order: Order, axes: tuple[int, ...] = (8, 8)) -> Tensor:
    """Scores of random queries and keys at coordinates."""
    q, k = torch.randn(2, 1, 2, len(coordinates), sum(axes), generator=torch.Generator().manual_seed(5))
    turn = rotation_at(coordinates, axes=axes, theta=10000.0, order=order)
    return turn(q) @ turn(k).mT


@pytest.mark.parametrize("order", ORDERS)
def test_scores_depend_on_differences_of_coordinates_alone(order: Order) -> None:
    here = scores(GRID, order)
    torch.testing.assert_close(scores(GRID + torch.tensor([7.0, -3.0]), order), here, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scores(GRID * torch.tensor([2.0, 1.0]), order), here, atol=1e-2)


@pytest.mark.parametrize("order", ORDERS)
def test_axes_are_separate(order: Order) -> None:
    """A score is the sum of one along rows and one along columns, each of its own numbers of a head."""
    turn, rows, columns = (
        rotation_at(at, axes=(8, 8), theta=100.0, order=order)
        for at in (GRID, GRID * torch.tensor([1.0, 0.0]), GRID * torch.tensor([0.0, 1.0]))
    )
    numbers = torch.arange(16).view((8, 2) if order == "interleaved" else (2, 8))
    first = numbers[:4].flatten() if order == "interleaved" else numbers[:, :4].flatten()
    of_rows = torch.zeros(16).index_fill(0, first, 1.0)
    q, k = torch.randn(2, 1, 1, 12, 16)
    both = turn(q) @ turn(k).mT
    along_rows = rows(q * of_rows) @ rows(k * of_rows).mT
    along_columns = columns(q * (1 - of_rows)) @ columns(k * (1 - of_rows)).mT
    torch.testing.assert_close(both, along_rows + along_columns, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("order", "unbound"), [("interleaved", -1), ("halves", -2)])
def test_the_orders_are_those_of_diffusers(order: Order, unbound: int) -> None:
    x, at = torch.randn(2, 3, 5, 16), torch.tensor([0.0, 1.0, 2.0, 7.0, 100.0])
    tables = get_1d_rotary_pos_embed(
        16, at, use_real=True, repeat_interleave_real=order == "interleaved", freqs_dtype=torch.float64
    )
    expected = apply_rotary_emb(x, tables, use_real_unbind_dim=unbound)
    ours = rotation_at(at[:, None], axes=(16,), theta=10000.0, order=order)(x)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_the_angle_by_the_formula(order: Order) -> None:
    """A turn by p theta^(-2 i / m) of the i-th pair: here the second of the second axis."""
    turned = rotation_at(torch.tensor([[3.0, 5.0]]), axes=(4, 8), theta=100.0, order=order)
    angle = 5.0 * 100.0 ** (-2 / 8)
    first, second = (6, 7) if order == "interleaved" else (3, 9)
    out = turned(torch.eye(12)[first].view(1, 1, 1, 12)).flatten()
    torch.testing.assert_close(out[[first, second]], torch.tensor([math.cos(angle), math.sin(angle)]))


def test_grids_are_row_by_row_and_of_any_size() -> None:
    rotary = RotaryPositions(axes=(8, 8), theta=100.0)
    for _ in range(2):  # from the cache the second time
        made = rotary(3, 4, device=CPU)
        expected = rotation_at(GRID, axes=(8, 8), theta=100.0, order="interleaved")
        assert torch.equal(made.cos, expected.cos)
        assert torch.equal(made.sin, expected.sin)
    assert rotary(7, 2, device=CPU).cos.shape == (14, 8)
    assert not rotary.state_dict()


def test_unturned_tokens_stay_as_they_are() -> None:
    turn = RotaryPositions(axes=(8, 8))(2, 2, device=CPU).then_unturned(3)
    x = torch.randn(1, 2, 7, 16)
    out = turn(x)
    assert torch.equal(out[:, :, 4:], x[:, :, 4:])
    assert not torch.equal(out[:, :, 1:4], x[:, :, 1:4])


def test_bf16_heads_are_turned_in_float32() -> None:
    turn = RotaryPositions(axes=(16,))(1000, device=CPU)
    x = torch.randn(1, 1, 1000, 16).bfloat16()
    assert turn(x).dtype == torch.bfloat16
    assert torch.equal(turn(x), turn(x.float()).bfloat16())


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.positions=rope needs heads whose width is a multiple of 4"):
        even_axes(18, 2)
