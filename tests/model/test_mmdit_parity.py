"""MMDiT computes what diffusers' SD3Transformer2DModel computes, on the same weights.

Where the two definitions differ, diffusers' is set to ours first, and a test states the difference:
  - SD3 sends the pooled caption through a two-layer MLP; ours is the paper's linear layer W_c;
  - SD3's last adaLN, and that of the captions' last block, have the order (scale, shift);
  - SD3 crops its positions from the middle of a larger table; ours begin at 0;
  - SD3 has no caption mask; ours without one is the same.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.interchange.for_diffusers.names import mmdit_stacks, pooled_stacks
from rfdit.interchange.naming import shapes_of, to_ours
from rfdit.model import MMDiT

Randomise = Callable[[nn.Module], nn.Module]
WIDTH, DEPTH, HEADS, PATCH, CHANNELS, SIZE, POOLED, TOKEN = 48, 3, 4, 2, 4, 8, 12, 20


def reference(randomise: Randomise, *, qk_norm: bool = True, table: int = SIZE // PATCH) -> nn.Module:
    network = SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=DEPTH,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=TOKEN,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=table,
        qk_norm="rms_norm" if qk_norm else None,
    )
    return randomise(network).eval()


def with_linear_pooled(network: nn.Module, randomise: Randomise) -> nn.Module:
    """The reference with the paper's W_c in place of the pooled caption's MLP."""
    network.time_text_embed.text_embedder = randomise(nn.Linear(POOLED, WIDTH))
    return network


def copied(theirs: nn.Module, *, qk_norm: bool = True) -> MMDiT:
    """Our network with the reference's weights; the pooled caption's too, where it has a linear layer."""
    ours = MMDiT(
        width=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        patch_size=PATCH,
        in_channels=CHANNELS,
        input_size=SIZE,
        pooled_width=POOLED,
        token_width=TOKEN,
        qk_norm=qk_norm,
    )
    network = nn.ModuleDict({"backbone": ours})
    is_linear = isinstance(theirs.time_text_embed.text_embedder, nn.Linear)
    stacks = mmdit_stacks(DEPTH, qk_norm=qk_norm) + (pooled_stacks() if is_linear else [])
    state = to_ours(stacks, theirs.state_dict(), shapes_of(network.state_dict()))
    missing, unexpected = network.load_state_dict(state, strict=False)
    pooled = [] if is_linear else ["backbone.pooled.weight", "backbone.pooled.bias"]
    assert (missing, unexpected) == (["backbone.positions.table", *pooled], [])
    return ours


GENERATOR = torch.Generator().manual_seed(2)
Z = torch.randn(3, CHANNELS, SIZE, SIZE, generator=GENERATOR)
T = torch.tensor([0.003, 0.4, 0.97])
COND = Condition(
    pooled=torch.randn(3, POOLED, generator=GENERATOR), tokens=torch.randn(3, 5, TOKEN, generator=GENERATOR)
)


def theirs_on(network: nn.Module) -> Tensor:
    return network(
        Z, encoder_hidden_states=COND.tokens, pooled_projections=COND.pooled, timestep=1000 * T
    ).sample


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("qk_norm", [True, False])
def test_the_velocity_is_the_same(randomise: Randomise, qk_norm: bool) -> None:
    theirs = with_linear_pooled(reference(randomise, qk_norm=qk_norm), randomise)
    assert difference(copied(theirs, qk_norm=qk_norm)(Z, T, COND), theirs_on(theirs)) <= 1e-5


def test_the_gradients_are_the_same(randomise: Randomise) -> None:
    """Gradients of the loss with respect to the first and the last weights."""
    theirs = with_linear_pooled(reference(randomise), randomise)
    ours = copied(theirs)
    weight = torch.randn_like(Z)
    (ours(Z, T, COND) * weight).sum().backward()
    (theirs_on(theirs) * weight).sum().backward()
    ends = [
        (ours.patches.proj, theirs.pos_embed.proj),
        (ours.captions, theirs.context_embedder),
        (ours.pooled, theirs.time_text_embed.text_embedder),
        (ours.final.linear, theirs.proj_out),
    ]
    for mine, other in ends:
        assert mine.weight.grad is not None
        assert difference(mine.weight.grad, other.weight.grad.flatten(1)) <= 1e-4


def test_a_full_mask_changes_nothing(randomise: Randomise) -> None:
    theirs = with_linear_pooled(reference(randomise), randomise)
    masked = Condition(COND.pooled, COND.tokens, torch.ones(3, 5, dtype=torch.bool))
    assert difference(copied(theirs)(Z, T, masked), theirs_on(theirs)) <= 1e-5


def test_difference_the_pooled_caption_has_an_mlp(randomise: Randomise) -> None:
    """SD3's W_2 silu(W_1 c) is not a linear layer: with W_c = W_2 W_1 the two differ."""
    theirs = reference(randomise)
    mlp = theirs.time_text_embed.text_embedder
    ours = copied(theirs)
    with torch.no_grad():
        ours.pooled.weight.copy_(mlp.linear_2.weight @ mlp.linear_1.weight)
        ours.pooled.bias.copy_(mlp.linear_2.weight @ mlp.linear_1.bias + mlp.linear_2.bias)
    assert difference(ours(Z, T, COND), theirs_on(theirs)) > 1e-2


@pytest.mark.parametrize("which", ["last caption norm", "final norm"])
def test_difference_scale_comes_before_shift(randomise: Randomise, which: str) -> None:
    """Copied row by row, without the swap, the two differ."""
    theirs = with_linear_pooled(reference(randomise), randomise)
    ours = copied(theirs)
    at = -4 * WIDTH if which == "last caption norm" else -2 * WIDTH
    with torch.no_grad():
        for values in (ours.modulation.linear.weight, ours.modulation.linear.bias):
            rows = values[at : at + 2 * WIDTH or None]
            rows.copy_(rows.roll(WIDTH, 0))
    assert difference(ours(Z, T, COND), theirs_on(theirs)) > 1e-2


def test_difference_positions_are_cropped_from_the_middle(randomise: Randomise) -> None:
    """The table here is larger than the latent; for a table of the latent's size, both are the same."""
    same, larger = (reference(randomise, table=table).pos_embed for table in (SIZE // PATCH, 8))
    ours = MMDiT(
        width=WIDTH,
        depth=1,
        num_heads=HEADS,
        patch_size=PATCH,
        in_channels=CHANNELS,
        input_size=SIZE,
        pooled_width=POOLED,
        token_width=TOKEN,
    ).positions.table.data
    torch.testing.assert_close(same.cropped_pos_embed(SIZE, SIZE)[0], ours)
    assert not torch.allclose(larger.cropped_pos_embed(SIZE, SIZE)[0], ours, atol=0.1)
