"""Networks, attention and noise are on a GPU what they are on a CPU."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rfdit.model import FusedAttention, ManualAttention
from rfdit.randomness import SampleGenerator
from tests.support.gpu.gradients import assert_near, build, loss_and_gradients

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("bf16", "bound"), [(False, 2e-4), (True, 0.05)])
@pytest.mark.parametrize("kind", ["dit", "mmdit"])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "recompute": "selective"}])
def test_loss_and_gradients_are_the_cpus(
    device: torch.device, kind: str, changes: dict[str, object], bf16: bool, bound: float
) -> None:
    """Float32 on both within rounding; bf16 on the GPU within five hundredths of float32 on the CPU."""
    expected = loss_and_gradients(build(kind, **changes), kind, CPU)
    found = loss_and_gradients(build(kind, **changes), kind, device, bf16=bf16)
    assert_near(found, expected, bound)


def test_compiled_blocks_are_the_eager_ones(device: torch.device, compiler: None) -> None:
    """A process without the tests' shape checks compiles them, since not every torch can trace these."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.gpu.compiled", str(device)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 3


def attended(
    attention: Callable[..., Tensor], qkv: list[Tensor], mask: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output, and the gradients of a weighted sum of it, all float32."""
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    out = attention(*leaves, mask)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    gradients = torch.autograd.grad((out * weights).sum(), leaves)
    return out.detach().float(), tuple(gradient.float() for gradient in gradients)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [64, 77])
@pytest.mark.parametrize("head", [64, 72])
def test_fused_attention_is_the_manual_one_in_bf16(
    device: torch.device, head: int, tokens: int, masked: bool
) -> None:
    """Both within two hundredths of float32's; 72 is XL's head, 77 a number of keys that is not a multiple of 8."""
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(3, 2, tokens, head, generator=generator).to(device) for _ in range(3)]
    halves = [x.bfloat16() for x in exact]
    mask = torch.arange(tokens, device=device) < torch.tensor([[tokens], [5], [1]], device=device)
    mask = mask if masked else None
    out, gradients = attended(ManualAttention(), [x.float() for x in halves], mask)
    for attention in (FusedAttention(), ManualAttention()):
        near, near_gradients = attended(attention, halves, mask)
        for found, expected in zip((near, *near_gradients), (out, *gradients)):
            assert (found - expected).norm() < 0.02 * expected.norm()


def test_noise_is_the_cpus(device: torch.device) -> None:
    """Bits and uniform numbers are the same to the last bit; normal ones to the rounding of log, cos and sin."""
    keys = torch.tensor([0, 1, 7, 123_456_789_012, 2**62])
    here, there = (
        SampleGenerator(seed=11, keys=keys.to(where), purpose="train").fork("noise")
        for where in (CPU, device)
    )
    assert torch.equal(here._bits(1000), there._bits(1000).cpu())
    assert torch.equal(here.uniform(3, 333), there.uniform(3, 333).cpu())
    mine, theirs = here.normal(4, 64, 64), there.normal(4, 64, 64).cpu()
    assert (mine - theirs).abs().max() < 2e-6
