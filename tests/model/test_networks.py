"""Properties that DiT and MMDiT share: zero at the start, trained everywhere, any latent, any path."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rfdit.batch import Condition
from rfdit.model import ManualAttention
from rfdit.model.layers.embeddings import sincos_positions
from tests.support.models.networks import gradients

Make = Callable[..., nn.Module]
Inputs = Callable[..., tuple[Tensor, Tensor, Condition]]


def test_adaln_zero_starts_at_zero_velocity(network: Make, given: Inputs) -> None:
    assert network(initial=True)(*given()).abs().max() == 0


def test_adaln_zero_blocks_start_as_the_identity(network: Make, given: Inputs, kind: str) -> None:
    """Zero shifts, scales and gates, as the zero-initialised table gives them."""
    model = network(initial=True)
    x, c = torch.randn(2, 6, 32), torch.randn(2, 4, 32)
    modulations = model.modulation(torch.randn(2, 32))
    assert all(vectors.abs().max() == 0 for vectors in modulations)
    for i, block in enumerate(model.blocks):
        if kind == "dit":
            assert torch.equal(block(x, modulations[i]), x)
        else:
            x_out, c_out = block(x, c, modulations[i], modulations[len(model.blocks) + i])
            assert torch.equal(x_out, x)
            assert torch.equal(c_out, c)


def test_gradients_reach_every_trained_parameter(network: Make, given: Inputs) -> None:
    """This holds once the zeros of the initialisation have moved. (Without QK-norm, key biases cancel in the softmax.)

    The last block's caption queries are the exception: as in SD3 they exist, but nothing reads what they
    attend to.
    """
    for name, gradient in gradients(network(qk_norm=True), given()).items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert (gradient.abs().max() > 0) == (name != "blocks.1.c.q_norm.weight"), name


def test_after_one_step_from_the_initialisation_the_output_moves(network: Make, given: Inputs) -> None:
    model = network(initial=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = (model(*given()) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_manual_attention_equals_fused(network: Make, given: Inputs, qk_norm: bool) -> None:
    fused, manual = network(qk_norm=qk_norm), network(qk_norm=qk_norm, attention=ManualAttention())
    torch.testing.assert_close(fused(*given()), manual(*given()), atol=1e-5, rtol=1e-4)
    by_hand = gradients(manual, given())
    for name, gradient in gradients(fused, given()).items():
        torch.testing.assert_close(by_hand[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputed_activations_give_the_same_gradients(network: Make, given: Inputs, recompute: str) -> None:
    kept, recomputed = (gradients(network(recompute=option), given()) for option in ("none", recompute))
    for name, gradient in kept.items():
        assert gradient is not None
        assert torch.equal(gradient, recomputed[name]), name


@pytest.mark.parametrize(("size", "channels", "patch"), [((8, 8), 1, 4), ((4, 12), 3, 2), ((16, 8), 16, 4)])
def test_any_channels_and_sizes(
    network: Make, given: Inputs, size: tuple[int, int], channels: int, patch: int
) -> None:
    model = network(in_channels=channels, input_size=list(size), patch_size=patch)
    z_t, t, cond = given(size=size, channels=channels)
    assert model(z_t, t, cond).shape == z_t.shape


def shift_positions(model: nn.Module, grid: tuple[int, int], *, top: float, left: float) -> None:
    """Makes a grid's positions count from (top, left)."""
    with torch.no_grad():
        model.positions.table.copy_(sincos_positions(*grid, 32, top=top, left=left))


def test_sincos_positions_serve_latents_of_another_size(network: Make, given: Inputs) -> None:
    """Centred: 2 x 6 tokens on 4 x 4 begin one row further down and one column further left."""
    model = network()
    z_t, t, cond = given(size=(4, 12))
    same_weights = network(input_size=(4, 12))
    shift_positions(same_weights, (2, 6), top=1, left=-1)
    torch.testing.assert_close(model(z_t, t, cond), same_weights(z_t, t, cond))


def test_one_network_learns_on_several_shapes(network: Make, given: Inputs) -> None:
    """Shapes in turns, after a look at all of them in inference mode, as Lightning validates first."""
    model = network(initial=True)
    sizes = [(4, 12), (8, 8), (12, 4), (6, 10)]
    with torch.inference_mode():
        assert all(model(*given(size=size)).shape[-2:] == size for size in sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        loss = (model(*given(size=sizes[step % len(sizes)])) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-4:]) < 0.5 * min(losses[:4])
    unseen = given(size=(4, 8))
    assert (model(*unseen) - 1).square().mean() < 0.5 * losses[0]


@pytest.mark.slow
def test_another_shape_in_compiled_blocks_and_with_recomputation(network: Make, given: Inputs) -> None:
    """Compiled by the cheapest backend; the claim is only that tracing sees the same positions."""
    for changes in ({}, {"recompute": "full"}, {"recompute": "selective"}):
        plain, compiled = network(**changes), network(**changes)
        for block in compiled.blocks:
            block.compile(backend="eager")
        for size in [(8, 8), (4, 12), (8, 8), (4, 12)]:
            expected = gradients(plain, given(size=size))
            for name, gradient in gradients(compiled, given(size=size)).items():
                torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_learned_positions_do_not(network: Make, given: Inputs) -> None:
    model = network(positions="learned")
    assert model(*given()).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"model\.positions=learned knows the token grid 4x4, not 2x6"):
        model(*given(size=(4, 12)))


def test_a_samples_velocity_does_not_depend_on_its_batch(network: Make, given: Inputs) -> None:
    model = network()
    z_t, t, cond = given(4)
    torch.testing.assert_close(model(z_t, t, cond)[2:], model(z_t[2:], t[2:], cond[2:]), atol=1e-5, rtol=1e-4)


def test_time_and_condition_matter(network: Make, given: Inputs) -> None:
    model = network()
    z_t, t, cond = given()
    other = Condition(cond.pooled + 1, cond.tokens, cond.mask)
    assert not torch.allclose(model(z_t, t, cond), model(z_t, 1 - t, cond))
    assert not torch.allclose(model(z_t, t, cond), model(z_t, t, other))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_bf16_autocast_is_close_and_returns_float32(network: Make, given: Inputs, qk_norm: bool) -> None:
    model = network(qk_norm=qk_norm)
    exact = model(*given(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(*given(8))
        half.square().mean().backward()
    assert half.dtype == torch.float32
    assert (half - exact).norm() / exact.norm() < 0.03
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.blocks.parameters())


def test_the_patch_must_divide_the_latent(network: Make) -> None:
    sentence = r"^model\.patch_size=3 does not divide the latent size 32; use 2, 4 or 8$"
    with pytest.raises(ValueError, match=sentence):
        network(input_size=32, patch_size=3)


def test_the_heads_must_divide_the_width(network: Make) -> None:
    with pytest.raises(ValueError, match=r"model\.num_heads=5 does not divide model\.width=32"):
        network(num_heads=5)


def operations(network: nn.Module, given: tuple[Tensor, Tensor, Condition]) -> int:
    """Number of matrix products and attention kernels in a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        gradients(network, given)
    return counter.get_total_flops()


def test_selective_recomputation_repeats_no_matrix_product(network: Make, given: Inputs) -> None:
    """Full recomputation repeats the blocks' forward pass, a third of a step's operations."""
    kept, full, selective = (
        operations(network(recompute=option), given()) for option in ("none", "full", "selective")
    )
    assert selective == kept
    assert 1.2 * kept < full < 1.34 * kept
