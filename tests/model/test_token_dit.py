"""DiT's four conditioning variants: their parameters and multiply-adds, and the two without adaLN."""

import pytest
import torch
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.cost.count import count_macs, count_parameters
from rfdit.model import DiT, TokenDiT
from tests.support.models.networks import Randomise
from tests.support.models.published import PARAMETERS

XL = {"width": 1152, "depth": 28, "num_heads": 16, "patch_size": 2, "in_channels": 4, "input_size": 32}
D, DEPTH, TOKENS = 1152, 28, 256
VARIANTS = ["in_context", "cross_attention", "adaln", "adaln_zero"]


def variant(name: str, settings: dict[str, object]) -> nn.Module:
    if name in ("in_context", "cross_attention"):
        return TokenDiT(**settings, conditioning=name)
    return DiT(**settings, adaln="plain" if name == "adaln" else "zero")


def macs_of(name: str) -> int:
    with torch.device("meta"):
        network = variant(name, XL)
    return count_macs(network, (4, 32, 32), Condition(pooled=torch.empty(1, D, device="meta")))


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters(name: str) -> None:
    """Beside what all have in common: weighted norms, cross-attention, or vectors of adaLN and their biases."""
    with torch.device("meta"):
        counted = count_parameters(variant(name, XL))
    block = 12 * D * D + 9 * D
    common = DEPTH * block + 17 * D + (D + 1) * 16 + TOKENS * D + (256 + 1) * D + (D + 1) * D
    norms = 2 * (2 * DEPTH + 1) * D
    own = {
        "in_context": norms,
        "cross_attention": norms + DEPTH * (2 * D + 4 * (D + 1) * D),
        "adaln": (4 * DEPTH + 2) * (D + 1) * D,
        "adaln_zero": (6 * DEPTH + 2) * (D + 1) * D,
    }[name]
    assert counted == common + own
    if name == "adaln_zero":
        assert counted + 1001 * D == PARAMETERS["xl"]


@pytest.mark.parametrize("name", VARIANTS)
def test_multiply_adds(name: str) -> None:
    n = TOKENS + 2 * (name == "in_context")
    blocks = DEPTH * (12 * n * D * D + 2 * n * n * D)
    ends = 2 * TOKENS * 16 * D + (256 + D) * D
    cross = DEPTH * (2 * TOKENS * D * D + 2 * 2 * D * D + 2 * TOKENS * 2 * D)
    own = {
        "in_context": 0,
        "cross_attention": cross,
        "adaln": (4 * DEPTH + 2) * D * D,
        "adaln_zero": (6 * DEPTH + 2) * D * D,
    }[name]
    assert macs_of(name) == blocks + ends + own


SMALL = {"width": 32, "depth": 2, "num_heads": 4, "patch_size": 2, "in_channels": 3, "input_size": 8}


def given() -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(3)
    z_t = torch.randn(2, 3, 8, 8, generator=generator)
    return z_t, torch.tensor([0.2, 0.7]), Condition(pooled=torch.randn(2, 32, generator=generator))


@pytest.mark.parametrize("conditioning", ["in_context", "cross_attention"])
@pytest.mark.parametrize(
    "changes", [{}, {"positions": "rope", "norm": "rms", "mlp": "swiglu", "qk_norm": "layer"}]
)
def test_it_is_trained_everywhere_whatever_is_recomputed(
    randomise: Randomise, conditioning: str, changes: dict[str, object]
) -> None:
    found = []
    for recompute in ("none", "full", "selective"):
        network = randomise(TokenDiT(**SMALL, **changes, conditioning=conditioning, recompute=recompute))
        network(*given()).square().sum().backward()
        grads = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        assert all(g is not None and g.isfinite().all() for g in grads.values())
        # A bias of all keys cancels in the softmax.
        still = {name for name, g in grads.items() if g is not None and g.abs().max() == 0}
        assert still <= {name for name in grads if name.endswith("k_norm.bias")}
        found.append(grads)
    assert all(torch.equal(g, other[name]) for other in found for name, g in found[0].items())


@pytest.mark.parametrize("conditioning", ["in_context", "cross_attention"])
def test_time_and_condition_matter(randomise: Randomise, conditioning: str) -> None:
    network = randomise(TokenDiT(**SMALL, conditioning=conditioning))
    z_t, t, cond = given()
    out = network(z_t, t, cond)
    assert out.shape == z_t.shape
    assert not torch.allclose(out, network(z_t, 1 - t, cond), atol=1e-3)
    assert not torch.allclose(out, network(z_t, t, Condition(cond.pooled.flip(1))), atol=1e-3)
    assert TokenDiT(**SMALL, conditioning=conditioning)(*given()).abs().max() == 0


def test_in_context_tokens_are_not_turned(randomise: Randomise) -> None:
    """Their order and place in the sequence do not matter with rotary positions of patches."""
    network = randomise(TokenDiT(**SMALL, conditioning="in_context", positions="rope"))
    block, x = network.blocks[0], torch.randn(1, 6, 32)
    turn = network.rotary(2, 2, device=x.device).then_unturned(2)
    swapped = [0, 1, 2, 3, 5, 4]
    torch.testing.assert_close(block(x[:, swapped], None, turn), block(x, None, turn)[:, swapped])
