"""The readable attention and the fast one are the same function, with the same gradients."""

import pytest
import torch
from torch import Tensor

from rfdit.model import FusedAttention, ManualAttention


def heads(queries: int = 7, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    shape = (2, 3, 1, 8)
    q = torch.randn(2, 3, queries, 8, requires_grad=True)
    k, v = (torch.randn(*shape[:2], keys, 8, requires_grad=True) for _ in range(2))
    return q, k, v


MASK = torch.tensor([[True] * 7, [True, True, True, False, False, True, False]])


@pytest.mark.parametrize("mask", [None, MASK])
def test_manual_equals_fused(mask: Tensor | None) -> None:
    qkv = heads()
    outputs = [attention(*qkv, mask) for attention in (FusedAttention(), ManualAttention())]
    torch.testing.assert_close(outputs[0], outputs[1])
    weights = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad((out * weights).sum(), qkv) for out in outputs]
    for fused, manual in zip(*gradients):
        torch.testing.assert_close(fused, manual)


@pytest.mark.parametrize("attention", [FusedAttention(), ManualAttention()])
def test_by_hand(attention: FusedAttention | ManualAttention) -> None:
    """softmax(q k / sqrt(d)) v for two keys."""
    q = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    k = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]).view(1, 1, 2, 4)
    v = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]).view(1, 1, 2, 4)
    first = torch.sigmoid(torch.tensor(2 / 4**0.5)).item()
    torch.testing.assert_close(attention(q, k, v).flatten(), torch.tensor([first, 1 - first, 0.0, 0.0]))


@pytest.mark.parametrize("attention", [FusedAttention(), ManualAttention()])
def test_masked_keys_are_as_if_they_were_not_there(attention: FusedAttention | ManualAttention) -> None:
    q, k, v = heads()
    kept = MASK[1]
    masked = attention(q[1:], k[1:], v[1:], MASK[1:])
    torch.testing.assert_close(masked, attention(q[1:], k[1:, :, kept], v[1:, :, kept]))


@pytest.mark.parametrize("attention", [FusedAttention(), ManualAttention()])
@pytest.mark.parametrize("mask", [None, MASK])
def test_bf16_stays_close_and_so_do_its_gradients(
    attention: FusedAttention | ManualAttention, mask: Tensor | None
) -> None:
    """Tested for both, since the fused form computes bf16 on a CPU differently."""
    qkv = heads()
    halves = [x.detach().bfloat16().requires_grad_() for x in qkv]
    exact, half = attention(*qkv, mask), attention(*halves, mask)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.03, rtol=0.03)
    weights = torch.randn_like(exact)
    expected = torch.autograd.grad((exact * weights).sum(), qkv)
    for gradient, exact_gradient in zip(
        torch.autograd.grad((half.float() * weights).sum(), halves), expected
    ):
        assert (gradient.float() - exact_gradient).norm() / exact_gradient.norm() < 0.03


def test_long_sequences_use_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of more than 1,024 tokens, in bf16 on a CPU, would not fit."""
    monkeypatch.setattr(FusedAttention, "_products", None)
    q, k, v = (torch.randn(1, 1, 1025, 8).bfloat16() for _ in range(3))
    assert FusedAttention()(q, k, v).shape == q.shape
    with pytest.raises(TypeError):
        FusedAttention()(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:])
