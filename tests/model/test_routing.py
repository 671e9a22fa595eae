"""Tokens that pass some blocks by: put back as they were, at their own positions, and known to all that follows."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rfdit.batch import Batch, Condition
from rfdit.cost.count import count_macs
from rfdit.model import DataPrediction, DiT
from rfdit.model.routing import check_routing, routed
from rfdit.objective import TREAD
from rfdit.protocols import Route
from tests.support.models.networks import DiTFactory, MMDiTFactory, gradients

Make = Callable[..., nn.Module]
Inputs = Callable[..., tuple[Tensor, Tensor, Condition]]
SETTINGS = {"depth": 4, "positions": "rope"}  # 4 x 4 tokens
KEPT = torch.tensor([[0, 3, 4, 9, 15], [1, 2, 7, 8, 11]])


def assert_equal(mine: dict[str, Tensor | None], others: dict[str, Tensor | None]) -> None:
    """Gradients to the bit; None is that of a weight without one."""
    for name, gradient in mine.items():
        other = others[name]
        assert gradient is other or (gradient is not None and other is not None), name
        assert gradient is None or torch.equal(gradient, other), name


def test_a_route_of_all_tokens_changes_no_bit(network: Make, given: Inputs) -> None:
    model = network(**SETTINGS)
    expected = gradients(model, given())
    with routed(model, Route(first=2, last=3, kept=torch.arange(16).expand(2, -1))):
        assert torch.equal(model(*given()), network(**SETTINGS)(*given()))
        assert_equal(gradients(model, given()), expected)


def test_tokens_that_pass_by_are_what_they_were(network: Make, given: Inputs) -> None:
    model, seen = network(**SETTINGS), {}
    for number in (2, 4):
        model.blocks[number - 1].register_forward_pre_hook(
            lambda block, args, number=number: seen.update({number: args[0]})
        )
    with torch.no_grad():
        model(*given())
        before = seen[2]
        with routed(model, Route(first=2, last=3, kept=KEPT)):
            model(*given())
    kept = torch.zeros(2, 16, dtype=torch.bool).scatter(1, KEPT, True)
    assert torch.equal(seen[2], before[kept].view(2, 5, -1))
    assert torch.equal(seen[4][~kept], before[~kept])
    assert (seen[4][kept] != before[kept]).any(-1).all()


# The captions of mmdit are not turned, so that its positions are not relative: only the first columns.
@pytest.mark.parametrize(("kind", "columns"), [("dit", [0, 1]), ("dit", [2, 3]), ("mmdit", [0, 1])])
def test_kept_tokens_are_at_their_own_positions(network: Make, given: Inputs, columns: list[int]) -> None:
    """The columns of an image that alone are kept in all blocks make the image of these columns."""
    model = network(**SETTINGS)
    z_t, t, cond = given()
    of_image = z_t.unflatten(3, (4, 2))[:, :, :, columns].flatten(3)
    kept = (4 * torch.arange(4)[:, None] + torch.tensor(columns)).flatten().expand(2, -1)
    with torch.no_grad():
        with routed(model, Route(first=1, last=4, kept=kept)):
            found = model(z_t, t, cond).unflatten(3, (4, 2))[:, :, :, columns].flatten(3)
        torch.testing.assert_close(found, model(of_image, t, cond), atol=1e-4, rtol=1e-4)


def test_padded_captions_stay_unseen(mmdit: MMDiTFactory, inputs: Inputs) -> None:
    model, (z_t, t, cond) = mmdit(**SETTINGS), inputs(mmdit=True)
    assert cond.tokens is not None
    assert cond.mask is not None
    other = replace(cond, tokens=torch.where(cond.mask[..., None], cond.tokens, 7.0))
    with torch.no_grad(), routed(model, Route(first=2, last=3, kept=KEPT)):
        torch.testing.assert_close(model(z_t, t, other), model(z_t, t, cond))


def test_gradients_reach_the_tokens_that_pass_by(network: Make, given: Inputs) -> None:
    model, (z_t, t, cond) = network(**SETTINGS), given()
    z_t.requires_grad_()
    with routed(model, Route(first=2, last=3, kept=KEPT)):
        model(z_t, t, cond).square().sum().backward()
    assert z_t.grad is not None
    assert (z_t.grad.unflatten(2, (4, 2)).unflatten(4, (4, 2)).abs().amax((1, 3, 5)) > 0).all()


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputation_gives_the_same_gradients(network: Make, given: Inputs, recompute: str) -> None:
    model, again = network(**SETTINGS), network(**SETTINGS, recompute=recompute)
    route = Route(first=2, last=3, kept=KEPT)
    with routed(model, route), routed(again, route):
        expected, found = gradients(model, given()), gradients(again, given())
    assert_equal(found, expected)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(network: Make, given: Inputs) -> None:
    plain, compiled = network(**SETTINGS | {"depth": 3}), network(**SETTINGS | {"depth": 3})
    for block in compiled.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        for route in (None, Route(first=2, last=2, kept=KEPT)):
            with routed(plain, route), routed(compiled, route):
                torch.testing.assert_close(compiled(*given()), plain(*given()), atol=1e-4, rtol=1e-4)


def test_a_route_ends_with_its_context(dit: DiTFactory, inputs: Inputs) -> None:
    """Also through the wrapper of another prediction, and after an error."""
    model = dit(**SETTINGS)
    wrapped, plain = DataPrediction()(model), model(*inputs())
    dense = wrapped(*inputs())
    with routed(wrapped, Route(first=2, last=3, kept=KEPT)):
        assert not torch.equal(wrapped(*inputs()), dense)
        with pytest.raises(ValueError, match="a route of 2 samples does not fit a batch of 3"):
            wrapped(*inputs(3))
    assert torch.equal(wrapped(*inputs()), dense)
    assert torch.equal(model(*inputs()), plain)


class Reads:
    """An auxiliary loss that would read the states of a block."""

    coefficient = 1.0

    def __init__(self, block: int) -> None:
        self.block = block

    def is_over(self, step: int) -> bool:
        raise NotImplementedError

    def __call__(self, x: Tensor, batch: Batch | None, *, grid: tuple[int, int]) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(("block", "refused"), [(2, False), (3, True), (9, True), (10, False)])
def test_auxiliary_losses_read_states_of_all_tokens(dit: DiTFactory, block: int, refused: bool) -> None:
    model = dit(depth=12)
    sentence = rf"auxiliary\.block={block} sees only some of the tokens, as all blocks from 3 to 9 do"
    with pytest.raises(ValueError, match=sentence) if refused else nullcontext():
        check_routing(TREAD(), model, Reads(block))


def test_multiply_adds_are_those_of_the_tokens_that_are_kept() -> None:
    def count(depth: int, columns: int, route: Route | None = None) -> int:
        model = DiT(
            width=16, depth=depth, num_heads=2, patch_size=2, in_channels=3, input_size=(8, 2 * columns)
        )
        cond = Condition(pooled=torch.zeros(1, 16))
        return count_macs(model, (3, 8, 2 * columns), cond, route=route)

    half = Route(first=2, last=2, kept=torch.arange(8)[None])
    of_block = {columns: count(3, columns) - count(2, columns) for columns in (2, 4)}
    assert count(3, 4) - count(3, 4, half) == of_block[4] - of_block[2] > 0
