"""Blocks whose output is joined with their input: what comes out with all tokens, with some, and with none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rfdit.batch import Condition
from rfdit.cost.count import count_macs
from rfdit.model import DiT
from rfdit.model.routing import check_routing, routed, without_path
from rfdit.objective import SPRINT, TREAD
from rfdit.protocols import Route
from rfdit.sampler import ClassifierFree, NoGuidance, PathDrop, Sampler
from rfdit.sampler.solvers import Euler
from tests.support.models.networks import DiTFactory, MMDiTFactory, gradients

Inputs = Callable[..., tuple[Tensor, Tensor, Condition]]
SETTINGS = {"depth": 4, "positions": "rope", "outer_blocks": 1}  # 4 x 4 tokens; blocks 2 and 3
KEPT = torch.tensor([[0, 3, 4, 9, 15], [1, 2, 7, 8, 11]])


def states(model: DiT, inputs: tuple[Tensor, Tensor, Condition], route: Route | None) -> dict[int, Tensor]:
    """What each block is given, by number, and as 0 what the join gives."""
    seen: dict[int, Tensor] = {}
    hooks = [
        block.register_forward_pre_hook(lambda _, args, n=number: seen.update({n: args[0]}))
        for number, block in enumerate(model.blocks, start=1)
    ]
    hooks.append(model.blocks[2].register_forward_hook(lambda _, args, out: seen.update({0: out})))
    with torch.no_grad(), routed(model, route):
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


def joined(model: DiT, x: Tensor, y: Tensor) -> Tensor:
    """W [x, y], written out."""
    assert model.join is not None
    weight, bias = model.join.linear.weight, model.join.linear.bias
    return x @ weight[:, : x.shape[-1]].T + y @ weight[:, x.shape[-1] :].T + bias


def test_all_tokens_are_joined_with_what_they_were(dit: DiTFactory, inputs: Inputs) -> None:
    model, given = dit(**SETTINGS), inputs()
    seen = states(model, given, None)
    torch.testing.assert_close(seen[4], joined(model, seen[2], seen[0]), atol=1e-5, rtol=1e-5)
    every = Route(2, 3, torch.arange(16).expand(2, -1))
    assert torch.equal(states(model, given, every)[4], seen[4])


def test_what_is_joined_stays_in_float32(dit: DiTFactory, inputs: Inputs) -> None:
    """As all that flows between blocks does, also where their products are in bf16."""
    model, given = dit(**SETTINGS), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = states(model, given, None)
    assert seen[4].dtype == torch.float32
    torch.testing.assert_close(seen[4], joined(model, seen[2], seen[0].float()), atol=1e-5, rtol=1e-5)


def test_a_mask_token_stands_for_tokens_that_pass_by(dit: DiTFactory, inputs: Inputs) -> None:
    model = dit(**SETTINGS)
    assert model.join is not None
    left_out = torch.tensor([False, True])
    seen = states(model, inputs(), Route(2, 3, KEPT, left_out))
    y = model.join.token.expand(2, 16, -1).clone()
    y[0, KEPT[0]] = seen[0][0]
    whole = states(model, inputs(), None)[2]
    torch.testing.assert_close(seen[4], joined(model, whole, y), atol=1e-5, rtol=1e-5)
    assert not model.join.token.requires_grad


def test_without_the_path_its_blocks_are_not_computed(dit: DiTFactory, inputs: Inputs) -> None:
    model = dit(**SETTINGS)
    everyone = Route(2, 3, left_out=torch.ones(2, dtype=torch.bool))
    with torch.no_grad():
        with routed(model, everyone):
            expected = model(*inputs())
        calls = []
        model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(without_path(model)(*inputs()), expected)
        assert not calls
        assert not torch.equal(model(*inputs()), expected)
        assert calls
    cond = Condition(pooled=torch.zeros(1, model.width))
    none = Route(2, 3, torch.zeros(1, 0, dtype=torch.int64))
    whole, less = (count_macs(model, (3, 8, 8), cond, route=route) for route in (None, none))
    assert 0.4 * whole < less < 0.65 * whole  # two of four blocks


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputation_gives_the_same_gradients(dit: DiTFactory, inputs: Inputs, recompute: str) -> None:
    model, again = dit(**SETTINGS), dit(**SETTINGS, recompute=recompute)
    again.load_state_dict(model.state_dict())  # the mask token, which is drawn
    route = Route(2, 3, KEPT, torch.tensor([False, True]))
    with routed(model, route), routed(again, route):
        expected, found = gradients(model, inputs()), gradients(again, inputs())
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None) == (name == "join.token"), name
        assert gradient is None or torch.equal(gradient, found[name]), name


def test_path_drop_guidance_is_its_formula(dit: DiTFactory, inputs: Inputs) -> None:
    model = dit(**SETTINGS)
    z, _, cond = inputs()
    null, t = cond.map(torch.zeros_like), torch.tensor(0.4)
    with torch.no_grad():
        c, d = model(z, t.expand(2), cond), without_path(model)(z, t.expand(2), null)
        torch.testing.assert_close(PathDrop(scale=3.0)(model, cond, null)(z, t), d + 3 * (c - d))
        torch.testing.assert_close(PathDrop(scale=1.0)(model, cond, null)(z, t), c)
        assert torch.equal(model(z, t.expand(2), cond), c)  # nothing of it stays


def test_what_does_not_fit_is_said(dit: DiTFactory, mmdit: MMDiTFactory) -> None:
    plain, model = dit(depth=4), dit(**SETTINGS)
    with pytest.raises(ValueError, match="guidance leaves out the blocks in the middle of the model"):
        Sampler(solver=Euler(), guidance=PathDrop(scale=2.0), steps=1).check(plain)
    for guidance in (ClassifierFree(scale=2.0), NoGuidance(), PathDrop(scale=2.0)):
        Sampler(solver=Euler(), guidance=guidance, steps=1).check(model)
    check_routing(SPRINT(), model, None)
    for network in (plain, mmdit(depth=4)):
        with pytest.raises(ValueError, match=r"routing=sprint needs a model whose middle is joined"):
            check_routing(SPRINT(), network, None)
    with pytest.raises(ValueError, match=r"use model\.outer_blocks=null or routing=sprint"):
        check_routing(TREAD(), model, None)
    with pytest.raises(ValueError, match=r"model\.outer_blocks=2 at either end leave none of model\.depth=4"):
        dit(depth=4, outer_blocks=2)
