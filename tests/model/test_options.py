"""The options of DiT's and MMDiT's blocks: each against its formula, and what all of them keep."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.model.blocks import DiTBlock
from rfdit.model.layers.adaln import Layout, SharedModulation
from rfdit.model.layers.attention import ManualAttention
from rfdit.model.layers.mlp import mlp_widths, swiglu
from rfdit.model.layers.rope import RotaryPositions
from tests.support.models.networks import gradients

Make = Callable[..., nn.Module]
Inputs = Callable[..., tuple[Tensor, Tensor, Condition]]

OPTIONS: dict[str, dict[str, object]] = {
    "swiglu": {"mlp": "swiglu"},
    "rms": {"norm": "rms"},
    "layer norm of heads": {"qk_norm": "layer"},
    "rms norm of heads": {"qk_norm": "rms"},
    "rope": {"positions": "rope"},
    "rope by halves": {"positions": "rope", "rope_order": "halves"},
    "rope and table": {"positions": "sincos+rope"},
    "without shifts": {"shifts": False},
    "plain": {"adaln": "plain"},
    "plain without shifts": {"adaln": "plain", "shifts": False},
    "single": {"adaln": "single"},
    "bottleneck": {"patch_bottleneck": 6},
    "all": {
        "mlp": "swiglu", "norm": "rms", "qk_norm": "layer", "positions": "rope", "adaln": "single", "shifts": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_matters_and_is_trained(network: Make, given: Inputs, option: str) -> None:
    model, plain = network(**OPTIONS[option]), network(qk_norm=False)
    assert not torch.allclose(model(*given()), plain(*given()), atol=1e-3)
    unread = {"blocks.1.c.q_norm.weight", "blocks.1.c.q_norm.bias"}  # as in SD3
    for name, gradient in gradients(model, given()).items():
        assert gradient is not None, name
        moves = bool(gradient.abs().max() > 0)
        # A bias of all keys cancels in the softmax.
        assert moves == (name not in unread) or name.endswith("k_norm.bias"), name


@pytest.mark.parametrize("option", OPTIONS)
def test_blocks_with_gates_start_as_the_identity(
    network: Make, given: Inputs, kind: str, option: str
) -> None:
    model = network(initial=True, **OPTIONS[option])
    assert model(*given()).abs().max() == 0
    x, c = torch.randn(2, 6, 32), torch.randn(2, 4, 32)
    *modulations, _ = model.modulation(torch.randn(2, 32))
    of_blocks = [(modulations[0],)] if kind == "dit" else [(c, modulations[0], modulations[2])]
    out = model.blocks[0](x, *of_blocks[0])
    same = torch.equal(out if kind == "dit" else out[0], x)
    assert same == (OPTIONS[option].get("adaln") != "plain")


@pytest.mark.parametrize("option", ["all", "plain"])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputation_gives_the_same_gradients(
    network: Make, given: Inputs, option: str, recompute: str
) -> None:
    kept = gradients(network(**OPTIONS[option]), given())
    again = gradients(network(**OPTIONS[option], recompute=recompute), given())
    for name, gradient in kept.items():
        assert gradient is not None
        assert torch.equal(gradient, again[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("option", ["all", "plain", "rope by halves"])
def test_compiled_blocks_compute_the_same(network: Make, given: Inputs, option: str) -> None:
    plain, compiled = network(**OPTIONS[option]), network(**OPTIONS[option])
    for block in compiled.blocks:
        block.compile(backend="aot_eager")
    for size in [(8, 8), (4, 12)]:
        expected = gradients(plain, given(size=size))
        for name, gradient in gradients(compiled, given(size=size)).items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_rotary_positions_serve_other_sizes(network: Make, given: Inputs) -> None:
    """Without a table, a network of another input size is the same network."""
    small, wide = network(positions="rope"), network(positions="rope", input_size=(4, 12))
    torch.testing.assert_close(small(*given(size=(4, 12))), wide(*given(size=(4, 12))))
    assert small.state_dict().keys() == network().state_dict().keys() - {"positions.table"}


def test_a_block_by_its_formulas() -> None:
    """SwiGLU, RMSNorm, LayerNorm of heads, rotary positions and adaLN without shifts, written out."""
    torch.manual_seed(3)
    d, heads, n = 32, 4, 6
    block = DiTBlock(
        width=d, num_heads=heads, mlp_ratio=4.0, qk_norm="layer", attention=ManualAttention(), mlp="swiglu",
        norm="rms", layout=Layout(shifts=False),
    )  # fmt: skip
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, (scale1, gate1, scale2, gate2) = torch.randn(2, n, d), torch.randn(4, 2, 1, d)
    turn = RotaryPositions(axes=(4, 4))(2, 3, device=torch.device("cpu"))

    def rms(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def normed(x: Tensor, norm: nn.Module) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    s = block.x
    h = rms(x) * (1 + scale1)
    q, k, v = (
        part.view(2, n, heads, d // heads).transpose(1, 2)
        for part in (h @ s.qkv.weight.T + s.qkv.bias).split(d, dim=-1)
    )
    q, k = turn(normed(q, s.q_norm)), turn(normed(k, s.k_norm))
    attended = (q @ k.mT / (d // heads) ** 0.5).softmax(-1) @ v
    y = attended.transpose(1, 2).reshape(2, n, d) @ s.proj.weight.T + s.proj.bias
    expected = x + gate1 * y
    h = rms(expected) * (1 + scale2)
    a, b = (h @ s.mlp_in.weight.T + s.mlp_in.bias).split(85, dim=-1)
    expected = expected + gate2 * ((a * a.sigmoid() * b) @ s.mlp_out.weight.T + s.mlp_out.bias)
    modulation = torch.cat([scale1, gate1, scale2, gate2], dim=1)
    torch.testing.assert_close(block(x, modulation, turn), expected, atol=1e-4, rtol=1e-4)


def test_swiglu_has_as_many_parameters_as_gelu() -> None:
    assert mlp_widths("gelu", 1152, 4.0) == (4608, 4608)
    assert mlp_widths("swiglu", 1152, 4.0) == (6144, 3072)
    torch.testing.assert_close(
        swiglu(torch.tensor([0.5, -1.0, 2.0, 3.0])),
        F.silu(torch.tensor([0.5, -1.0])) * torch.tensor([2.0, 3.0]),
    )


def test_one_table_and_biases_of_blocks() -> None:
    """Block i takes linear(silu(y)) + bias_i, or the first vectors of it; the last layer takes y + bias."""
    table = SharedModulation(width=4, counts=[6, 6, 2, 2])
    for parameter in table.parameters():
        nn.init.normal_(parameter)
    y = torch.randn(3, 4)
    shared = (F.silu(y) @ table.linear.weight.T + table.linear.bias).view(3, 6, 4)
    first, second, short, final = table(y)
    torch.testing.assert_close(first, shared + table.bias[:6])
    torch.testing.assert_close(second, shared + table.bias[6:12])
    torch.testing.assert_close(short, shared[:, :2] + table.bias[12:14])
    torch.testing.assert_close(final, y[:, None] + table.bias[14:])
