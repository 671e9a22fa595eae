"""Flux: a network like the others, and with copied random weights diffusers' FluxTransformer2DModel."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel
from einops import rearrange
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.cost.count import count_macs, count_parameters
from rfdit.interchange.for_diffusers.transformer import flux_as_diffusers, from_flux
from rfdit.model import Flux
from rfdit.model.flux import flux_axes
from tests.support.models.parity import check_parity, difference

Randomise = Callable[[nn.Module], nn.Module]
HEADS, HEAD, DOUBLE, SINGLE, CHANNELS, POOLED, TOKEN = 4, 16, 2, 3, 4, 12, 20
AXES = (4, 6, 6)
SAME = [
    "in_channels",
    "num_layers",
    "num_single_layers",
    "guidance_embeds",
    "axes_dims_rope",
    "attention_head_dim",
]
Z = torch.randn(3, CHANNELS, 8, 12, generator=torch.Generator().manual_seed(2))
T = torch.tensor([0.003, 0.4, 0.97])


def condition() -> Condition:
    generator = torch.Generator().manual_seed(4)
    pooled, tokens = (torch.randn(3, *shape, generator=generator) for shape in ((POOLED,), (5, TOKEN)))
    return Condition(pooled, tokens)


def flux(**changes: object) -> Flux:
    settings = {
        "width": HEADS * HEAD, "depth": DOUBLE, "single_depth": SINGLE, "num_heads": HEADS, "patch_size": 2,
        "in_channels": CHANNELS, "input_size": 8, "pooled_width": POOLED, "token_width": TOKEN, "axes": AXES,
    } | changes  # fmt: skip
    return Flux(**settings)


def reference(randomise: Randomise, *, guided: bool) -> FluxTransformer2DModel:
    network = FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=TOKEN,
        pooled_projection_dim=POOLED,
        guidance_embeds=guided,
        axes_dims_rope=AXES,
    )
    return randomise(network).eval()


def theirs_on(
    network: FluxTransformer2DModel, guidance: float | None, z: Tensor = Z, t: Tensor = T
) -> Tensor:
    """Their velocity, with latents packed and unpacked as FluxPipeline does."""
    rows, columns = 4, 6
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1], ids[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)
    cond = condition()
    out = network(
        rearrange(z, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
        encoder_hidden_states=cond.tokens,
        pooled_projections=cond.pooled,
        timestep=t,
        img_ids=ids.flatten(0, 1),
        txt_ids=torch.zeros(5, 3),
        guidance=None if guidance is None else torch.full((3,), guidance),
    ).sample
    return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=2, q=2)


@pytest.mark.parametrize("guided", [False, True])
def test_the_velocity_is_diffusers(randomise: Randomise, guided: bool) -> None:
    theirs = reference(randomise, guided=guided)
    state, settings = from_flux(theirs.state_dict(), dict(theirs.config))
    assert settings["guidance"] == (3.5 if guided else None)
    ours = Flux(**settings)
    ours.load_state_dict({name.removeprefix("backbone."): x for name, x in state.items()})
    given = 3.5 if guided else None
    check_parity(
        f"FLUX, guidance {given}",
        lambda z, t: ours(z, t, condition()),
        lambda z, t: theirs_on(theirs, given, z, t),
        Z,
        T,
    )
    expected = theirs_on(theirs, given)
    if guided:
        other = replace(condition(), guidance=torch.ones(len(Z)))
        assert difference(ours(Z, T, other), theirs_on(theirs, 1.0)) <= 1e-5
        assert difference(ours(Z, T, other), expected) > 1e-3


def test_weights_go_back_as_they_came(randomise: Randomise) -> None:
    theirs = reference(randomise, guided=True)
    state, settings = from_flux(theirs.state_dict(), dict(theirs.config))
    back = flux_as_diffusers(Flux(**settings), state)
    assert type(back) is FluxTransformer2DModel
    assert {name: back.config[name] for name in SAME} == {name: theirs.config[name] for name in SAME}
    assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in back.state_dict().items())


def test_what_diffusers_cannot_express_is_refused() -> None:
    network = flux(axes=(4, 4, 4, 4))
    with pytest.raises(ValueError, match=r"format=diffusers needs three model\.axes"):
        flux_as_diffusers(network, network.state_dict())


def test_it_starts_at_zero_and_is_trained_everywhere(randomise: Randomise) -> None:
    assert flux()(Z, T, condition()).abs().max() == 0
    found = []
    for recompute in ("none", "full", "selective"):
        network = randomise(flux(recompute=recompute, guidance=2.0))
        network(Z, T, condition()).square().sum().backward()
        found.append({name: p.grad for name, p in network.named_parameters() if p.requires_grad})
        assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in found[-1].values())
    assert all(torch.equal(g, other[name]) for other in found for name, g in found[0].items())


def test_padding_is_not_seen(randomise: Randomise) -> None:
    network, cond = randomise(flux()), condition()
    mask = torch.tensor([[True] * 4 + [False]] * 3)
    other = Condition(cond.pooled, cond.tokens + ~mask[..., None] * 7.0, mask)
    masked = network(Z, T, Condition(cond.pooled, cond.tokens, mask))
    torch.testing.assert_close(network(Z, T, other), masked)
    assert not torch.allclose(network(Z, T, cond), masked, atol=1e-3)


def test_the_order_of_caption_tokens_matters_with_a_fourth_axis_alone(randomise: Randomise) -> None:
    cond = condition()
    turned = Condition(cond.pooled, cond.tokens.flip(1))
    network = randomise(flux())
    assert difference(network(Z, T, turned), network(Z, T, cond)) < 5e-6
    network = randomise(flux(axes=(4, 4, 4, 4)))
    assert difference(network(Z, T, turned), network(Z, T, cond)) > 5e-5


def test_parameters_and_multiply_adds_by_the_formulas() -> None:
    """FLUX.1-dev has 11.9 billion parameters."""
    with torch.device("meta"):
        network = Flux(
            width=3072, depth=19, single_depth=38, num_heads=24, patch_size=2, in_channels=16, input_size=128,
            pooled_width=768, token_width=4096, guidance=3.5,
        )  # fmt: skip
    assert network.rotary.axes == (16, 56, 56)
    assert count_parameters(network) == 11_901_408_320
    d, m = 64, 24 + 5  # width, tokens
    block = 12 * m * d * d + 2 * m * m * d  # the same for both kinds
    ends = 2 * 24 * 16 * d + 5 * TOKEN * d + (256 + d) * d + (POOLED + d) * d
    modulation = (12 * DOUBLE + 3 * SINGLE + 2) * d * d
    one = Condition(*(x[:1] for x in (condition().pooled, condition().tokens)))
    assert count_macs(flux(), (CHANNELS, 8, 12), one) == (DOUBLE + SINGLE) * block + ends + modulation


def test_axes_are_those_of_flux_or_must_sum_up() -> None:
    assert flux_axes(128) == (16, 56, 56)
    assert flux_axes(64) == (8, 28, 28)
    assert sum(flux_axes(72)) == 72
    with pytest.raises(
        ValueError, match=r"model\.axes=\[4, 4, 4\] must be three or four even numbers with the sum 16"
    ):
        flux(axes=(4, 4, 4))
    with pytest.raises(ValueError, match=r"heads of an even width of at least 8"):
        flux(axes=None, num_heads=16)
