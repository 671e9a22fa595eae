"""Positions, times and patches against slow formulas, and the way back from patches to latents."""

import copy
import math

import pytest
import torch

from rfdit.model.layers import embeddings
from rfdit.model.layers.embeddings import (
    PatchEmbedding,
    PositionEmbedding,
    TimeEmbedding,
    sincos_positions,
    sinusoid,
    token_grid,
    unpatchify,
)


def test_sincos_positions_by_the_formula() -> None:
    """Channel by channel: [sin x, cos x, sin y, cos y], x the column, frequencies 10000^(-4i/d)."""
    height, width, channels = 3, 5, 16
    table = sincos_positions(height, width, channels)
    quarter = channels // 4
    for row in range(height):
        for column in range(width):
            expected = [
                wave(coordinate * 10000 ** (-i / quarter))
                for coordinate in (column, row)
                for wave in (math.sin, math.cos)
                for i in range(quarter)
            ]
            torch.testing.assert_close(table[row * width + column], torch.tensor(expected))


def test_sinusoid_by_the_formula() -> None:
    t = torch.tensor([0.0, 0.3, 1.0])
    emb = sinusoid(1000 * t, 256)
    for k, time in enumerate(t.tolist()):
        angles = [1000 * time * 10000 ** (-i / 128) for i in range(128)]
        expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        torch.testing.assert_close(emb[k], torch.tensor(expected), atol=2e-4, rtol=0)


def test_neighbouring_times_differ_under_autocast() -> None:
    """bf16 cannot tell 0.500 from 0.501; the embedding must."""
    embed = TimeEmbedding(width=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        here, there = embed(torch.tensor([0.5, 0.501]))
    assert here.dtype == torch.float32
    assert not torch.allclose(here, there, atol=1e-4)


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 2), (4, 12, 4), (8, 16, 8)])
def test_unpatchify_undoes_patches(height: int, width: int, patch: int) -> None:
    """Both are fixed by writing (channel, row, column) into every latent number."""
    z = torch.randn(2, 3, height, width)
    grid = token_grid((height, width), patch)
    embed = PatchEmbedding(in_channels=3, patch_size=patch, width=3 * patch**2)
    # A permutation matrix from the input's order (c, p, q) to the output's (p, q, c).
    order = torch.arange(3 * patch**2).view(3, patch, patch).permute(1, 2, 0).flatten()
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(3 * patch**2)[order])
        embed.proj.bias.zero_()
    assert torch.equal(unpatchify(embed(z), grid, patch), z)


def test_a_patch_is_a_strided_convolution() -> None:
    embed = PatchEmbedding(in_channels=3, patch_size=2, width=8)
    z = torch.randn(2, 3, 4, 6)
    weight = embed.proj.weight.view(8, 3, 2, 2)
    convolved = torch.nn.functional.conv2d(z, weight, embed.proj.bias, stride=2)
    torch.testing.assert_close(embed(z), convolved.flatten(2).transpose(1, 2))


def test_a_bottleneck_is_the_product_of_two_layers() -> None:
    embed = PatchEmbedding(in_channels=3, patch_size=4, width=8, bottleneck=5)
    assert {name: tuple(p.shape) for name, p in embed.named_parameters()} == {
        "reduce.weight": (5, 48),
        "proj.weight": (8, 5),
        "proj.bias": (8,),
    }
    whole = PatchEmbedding(in_channels=3, patch_size=4, width=8)
    assert embed.reduce is not None
    with torch.no_grad():
        whole.proj.weight.copy_(embed.proj.weight @ embed.reduce.weight)
        whole.proj.bias.copy_(embed.proj.bias)
    z = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(embed(z), whole(z))


def test_coordinates_count_from_where_they_are_told() -> None:
    torch.testing.assert_close(
        sincos_positions(2, 3, 16, top=1, left=2),
        sincos_positions(3, 5, 16).view(3, 5, 16)[1:, 2:].flatten(0, 1),
    )


def test_frozen_positions_of_the_own_grid_are_the_table_and_are_not_trained() -> None:
    positions = PositionEmbedding(grid=(4, 6), width=16, kind="sincos")
    assert positions(4, 6) is positions.table
    assert not positions.table.requires_grad
    assert torch.equal(positions.table, sincos_positions(4, 6, 16))


def test_a_smaller_grid_is_the_middle_of_the_own_one() -> None:
    positions = PositionEmbedding(grid=(4, 6), width=16, kind="sincos")
    middle = positions.table.view(4, 6, 16)[1:3, 1:5].flatten(0, 1)
    torch.testing.assert_close(positions(2, 4), middle)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (2, 12), (3, 9), (1, 1)])
def test_every_grid_has_the_middle_of_the_own_one(height: int, width: int) -> None:
    """The mean coordinate of rows and columns does not change, as the docstring's formula says."""
    rows, columns = 4, 6
    positions = PositionEmbedding(grid=(rows, columns), width=16, kind="sincos")(height, width)
    assert positions.shape == (height * width, 16)
    top, left = (rows - height) / 2, (columns - width) / 2
    assert top + (height - 1) / 2 == (rows - 1) / 2
    # Channels 0 and 8 are the sines of the column and the row at frequency 1.
    grid = positions.view(height, width, 16)
    torch.testing.assert_close(grid[0, :, 0], torch.sin(left + torch.arange(width)))
    torch.testing.assert_close(grid[:, 0, 8], torch.sin(top + torch.arange(height)))


def test_other_grids_are_made_once_for_each_dtype_and_kept_out_of_the_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    positions = PositionEmbedding(grid=(4, 4), width=16, kind="sincos")
    first = positions(2, 6)
    made = []
    monkeypatch.setattr(embeddings, "sincos_positions", lambda *args, **kwargs: made.append(args))
    assert positions(2, 6) is first
    assert not made
    monkeypatch.undo()
    assert positions.double()(2, 6).dtype == torch.float64
    assert positions.float()(2, 6) is first
    assert set(positions.state_dict()) == {"table"}
    assert [name for name, _ in positions.named_buffers()] == []


def test_no_more_grids_are_kept_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "KEPT_GRIDS", 2)
    positions = PositionEmbedding(grid=(4, 4), width=16, kind="sincos")
    first, second, _ = (positions(1, n) for n in (1, 2, 3))
    assert positions(1, 2) is second
    assert positions(1, 1) is not first
    assert torch.equal(positions(1, 1), first)


def test_a_copy_has_tables_of_its_own_and_moves_alone() -> None:
    """The EMA copies a network in the same way in the middle of a run."""
    positions = PositionEmbedding(grid=(4, 4), width=16, kind="sincos")
    first = positions(2, 6)
    copied = copy.deepcopy(positions).double()
    assert copied(2, 6).dtype == torch.float64
    assert positions(2, 6) is first


def test_positions_made_in_inference_mode_can_be_trained_with() -> None:
    positions = PositionEmbedding(grid=(4, 4), width=16, kind="sincos")
    with torch.inference_mode():
        positions(2, 6)
    weight = torch.ones(16, requires_grad=True)
    (positions(2, 6) * weight).sum().backward()
    assert weight.grad is not None


def test_learned_positions_serve_their_own_grid_only() -> None:
    positions = PositionEmbedding(grid=(4, 4), width=16, kind="learned")
    assert positions(4, 4).requires_grad
    message = r"knows the token grid 4x4, not 2x6; use model\.positions=sincos"
    with pytest.raises(ValueError, match=message):
        positions(2, 6)


def test_sincos_needs_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match=r"model\.width=18 is not a multiple of 4"):
        PositionEmbedding(grid=(2, 2), width=18, kind="sincos")


def test_a_patch_that_does_not_divide_is_named_with_those_that_do() -> None:
    sentence = r"^model\.patch_size=3 does not divide the latent size 32; use 2, 4 or 8$"
    with pytest.raises(ValueError, match=sentence):
        token_grid(32, 3)
    with pytest.raises(ValueError, match=r"does not divide the latent size 8x12; use 2 or 4$"):
        token_grid((8, 12), 8)
    assert token_grid((8, 12), 4) == (2, 3)
