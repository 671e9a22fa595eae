"""Features of MMDiT alone: two streams in equal roles, masked captions, and a caption stream that ends."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.model import FusedAttention, MMDiT
from rfdit.model.blocks import MMDiTBlock

Randomise = Callable[[nn.Module], nn.Module]
Inputs = Callable[..., tuple[Tensor, Tensor, Condition]]


def test_the_streams_have_equal_roles(randomise: Randomise) -> None:
    """Swapping the streams' weights and inputs swaps their outputs, and nothing else."""
    block = MMDiTBlock(width=16, num_heads=2, mlp_ratio=4.0, qk_norm=True, attention=FusedAttention())
    randomise(block)
    x, c = torch.randn(2, 6, 16), torch.randn(2, 4, 16)
    for_x, for_c = torch.randn(2, 2, 6, 16)
    x_out, c_out = block(x, c, for_x, for_c)
    block.x, block.c = block.c, block.x
    c_swapped, x_swapped = block(c, x, for_c, for_x)
    torch.testing.assert_close(x_swapped, x_out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(c_swapped, c_out, atol=1e-5, rtol=1e-4)


def test_each_stream_reads_the_other(randomise: Randomise) -> None:
    block = MMDiTBlock(width=16, num_heads=2, mlp_ratio=4.0, qk_norm=True, attention=FusedAttention())
    randomise(block)
    x, c = torch.randn(2, 6, 16), torch.randn(2, 4, 16)
    for_x, for_c = torch.randn(2, 2, 6, 16)
    x_out, c_out = block(x, c, for_x, for_c)
    assert not torch.allclose(block(x, c + torch.randn_like(c), for_x, for_c)[0], x_out)
    assert not torch.allclose(block(x + torch.randn_like(x), c, for_x, for_c)[1], c_out)


def test_masked_caption_tokens_have_no_influence(mmdit: Callable[..., MMDiT], inputs: Inputs) -> None:
    model = mmdit()
    z_t, t, cond = inputs(4, mmdit=True)
    assert cond.tokens is not None
    assert cond.mask is not None
    noise = 100 * torch.randn_like(cond.tokens)
    padded = torch.where(cond.mask[..., None], cond.tokens, noise)
    torch.testing.assert_close(
        model(z_t, t, Condition(cond.pooled, padded, cond.mask)), model(z_t, t, cond), atol=1e-5, rtol=1e-4
    )
    real = torch.where(cond.mask[..., None], noise, cond.tokens)
    assert not torch.allclose(model(z_t, t, Condition(cond.pooled, real, cond.mask)), model(z_t, t, cond))


def test_padding_changes_nothing(mmdit: Callable[..., MMDiT], inputs: Inputs) -> None:
    """A caption in a longer, padded sequence is the same caption."""
    model = mmdit()
    z_t, t, cond = inputs(1, mmdit=True)
    assert cond.tokens is not None
    short = Condition(cond.pooled, cond.tokens[:, :2], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(model(z_t, t, short), model(z_t, t, cond), atol=1e-5, rtol=1e-4)


def test_no_mask_is_a_mask_of_ones(mmdit: Callable[..., MMDiT], inputs: Inputs) -> None:
    model = mmdit()
    z_t, t, cond = inputs(mmdit=True)
    assert cond.tokens is not None
    ones = Condition(cond.pooled, cond.tokens, torch.ones(cond.tokens.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(
        model(z_t, t, Condition(cond.pooled, cond.tokens)), model(z_t, t, ones), atol=1e-5, rtol=1e-4
    )


def test_the_caption_stream_ends_before_the_last_blocks_output(mmdit: Callable[..., MMDiT]) -> None:
    *others, last = mmdit(depth=3).blocks
    ended = {"proj.weight", "proj.bias", "mlp_in.weight", "mlp_in.bias", "mlp_out.weight", "mlp_out.bias"}
    names = {name for name, _ in last.c.named_parameters()}
    for block in others:
        assert {name for name, _ in block.c.named_parameters()} - names == ended


def test_captions_without_tokens_are_refused(mmdit: Callable[..., MMDiT]) -> None:
    with pytest.raises(ValueError, match=r"model=mmdit attends to caption tokens; use conditioner=text"):
        mmdit()(torch.zeros(1, 3, 8, 8), torch.zeros(1), Condition(pooled=torch.zeros(1, 6)))
