"""The pieces of a block, each against its formula."""

import math

import pytest
import torch

from rfdit.model import DiT
from rfdit.model.acceleration import compile_blocks
from rfdit.model.layers.adaln import modulated_norm
from rfdit.model.layers.mlp import gelu


def test_gelu_is_the_tanh_form_however_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    formula = x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(gelu(x), formula)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(gelu(x), formula)


def test_modulated_norm_by_the_formula() -> None:
    x, shift, scale = torch.randn(2, 3, 8), torch.randn(2, 8), torch.randn(2, 8)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(
        modulated_norm(x, shift, scale), normed * (1 + scale[:, None]) + shift[:, None]
    )


def test_statistics_of_a_bf16_stream_are_float32() -> None:
    """A mean far from zero would drown the variance in bf16."""
    x = (torch.randn(1, 4, 256) + 30).bfloat16()
    zero = torch.zeros(1, 256)
    assert modulated_norm(x, zero, zero).dtype == torch.float32
    torch.testing.assert_close(modulated_norm(x, zero, zero), modulated_norm(x.float(), zero, zero))


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(dit: type[DiT], inputs: object) -> None:
    eager, compiled = dit(), dit()
    compile_blocks(compiled)
    outputs = [network(*inputs()) for network in (eager, compiled)]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-4)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(eager.parameters(), compiled.parameters()):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-3)
