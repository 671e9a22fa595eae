"""adaLN's kernels for NVIDIA GPUs, in Triton, whose formulas, in float32, are those of `rfdit.model.layers.adaln`.

Written as PyTorch operations, a block's norms, modulations and gates read every token several times, even
when the compiler fuses them. The backward pass of a norm sums along the width of each token, and the
gradients of shift, scale and gate sum over the tokens of each sample, which the compiler cannot do in one
kernel. Here a program walks over tokens of one sample, keeps the sums over tokens in registers, and reads
and writes each token once.

x, x': (b, n, d) float32, the residual stream before and after the gate. y: (b, n, d), the branch that is
added through the gate, x' = x + gate y. shift, scale, gate: (b, d) float32, rows of a larger table.
h: (b, n, d), norm(x') (1 + scale) + shift.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 1e-6
# Greatest width at which a backward pass loads two tokens ahead; wider ones exceed some GPUs' shared memory.
WIDE = 2048
# Tokens of a sample that one program of a backward pass walks over: few make many partial sums to add up
# afterwards, many leave too few programs for a GPU.
WALK = 32


@triton.jit
@no_type_check  # Triton compiles the source, which tests' type checks would wrap
def _load(pointer, offset, columns, inside):
    return tl.load(pointer + offset + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _forward(
    x, y, gate, shift, scale, x_out, h, mean, rstd, tokens, gate_stride, shift_stride, scale_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    value = _load(x, row * WIDTH, columns, inside)
    if GATED:
        gate_row = _load(gate, sample * gate_stride, columns, inside)
        value += gate_row * _load(y, row * WIDTH, columns, inside)
        tl.store(x_out + row * WIDTH + columns, value, mask=inside)
    centre = tl.sum(value, 0) / WIDTH
    centred = tl.where(inside, value - centre, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + EPS)
    factor = 1.0 + _load(scale, sample * scale_stride, columns, inside)
    result = centred * inverse * factor + _load(shift, sample * shift_stride, columns, inside)
    tl.store(h + row * WIDTH + columns, result.to(h.dtype.element_ty), mask=inside)
    tl.store(mean + row, centre)
    tl.store(rstd + row, inverse)


@triton.jit
@no_type_check
def _backward(
    dh, dx_out, x, y, gate, scale, mean, rstd, dx, dy, sums, tokens, gate_stride, scale_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, WALK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    factor = 1.0 + _load(scale, sample * scale_stride, columns, inside)
    dshift = tl.zeros([BLOCK], tl.float32)
    dscale = tl.zeros([BLOCK], tl.float32)
    dgate = tl.zeros([BLOCK], tl.float32)
    if GATED:
        gate_row = _load(gate, sample * gate_stride, columns, inside)
    first = part * WALK
    for token in tl.range(first, min(first + WALK, tokens), num_stages=AHEAD + 1):
        row = sample * tokens + token
        value = _load(x, row * WIDTH, columns, inside)
        if GATED:
            branch = _load(y, row * WIDTH, columns, inside)
            value += gate_row * branch
        inverse = tl.load(rstd + row)
        normed = tl.where(inside, (value - tl.load(mean + row)) * inverse, 0.0)
        incoming = _load(dh, row * WIDTH, columns, inside)
        dshift += incoming
        dscale += incoming * normed
        scaled = incoming * factor
        along = tl.sum(scaled * normed, 0) / WIDTH
        result = (scaled - tl.sum(scaled, 0) / WIDTH - normed * along) * inverse
        result += _load(dx_out, row * WIDTH, columns, inside)
        tl.store(dx + row * WIDTH + columns, result, mask=inside)
        if GATED:
            dgate += result * branch
            tl.store(dy + row * WIDTH + columns, (result * gate_row).to(dy.dtype.element_ty), mask=inside)
    target = sums + (sample * tl.num_programs(1) + part) * 3 * WIDTH + columns
    tl.store(target, dshift, mask=inside)
    tl.store(target + WIDTH, dscale, mask=inside)
    if GATED:
        tl.store(target + 2 * WIDTH, dgate, mask=inside)


def _warps(block: int) -> int:
    """Sixteen numbers per thread: few warps whose sums have to be added, and enough registers for them."""
    return max(1, min(16, block // 512))


def _contiguous_rows(vectors: Tensor) -> Tensor:
    """The vectors with their numbers one after the other, as kernels read them."""
    return vectors if vectors.stride(-1) == 1 else vectors.contiguous()


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes the GPU of a tensor the current one, on which Triton starts kernels."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def forward(
    x: Tensor, y: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x', h, mean, rstd); x' is empty without a gate."""
    b, n, d = x.shape
    gate, shift, scale = (
        None if gate is None else _contiguous_rows(gate),
        _contiguous_rows(shift),
        _contiguous_rows(scale),
    )
    gated = y is not None and gate is not None
    x_out = torch.empty_like(x) if gated else x.new_empty(0)
    h = torch.empty_like(x, dtype=dtype)
    mean, rstd = x.new_empty(b, n), x.new_empty(b, n)
    block = triton.next_power_of_2(d)
    any_gate = shift if gate is None else gate  # not read without a gate
    with _device_of(x):
        _forward[(b * n,)](
            x, x if y is None else y, any_gate, shift, scale, x_out, h, mean, rstd, n,
            any_gate.stride(0), shift.stride(0), scale.stride(0), d, block, gated, EPS,
            num_warps=_warps(block), enable_fp_fusion=True,
        )  # fmt: skip
    return x_out, h, mean, rstd


def backward(
    dh: Tensor, dx_out: Tensor, x: Tensor, y: Tensor | None, gate: Tensor | None,
    scale: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of y, and (b, 3, d) of shift, scale and gate, from those of h and x'.

    Without a gate, that of y is empty and that of the gate is not written.
    """
    b, n, d = x.shape
    gate, scale = None if gate is None else _contiguous_rows(gate), _contiguous_rows(scale)
    gated = y is not None and gate is not None
    dx = torch.empty_like(x)
    dy = torch.empty_like(x if y is None else y) if gated else x.new_empty(0)
    parts = triton.cdiv(n, WALK)
    sums = x.new_empty(b, parts, 3, d)
    block = triton.next_power_of_2(d)
    any_gate = scale if gate is None else gate  # not read without a gate
    with _device_of(x):
        _backward[(b, parts)](
            dh, dx_out, x, x if y is None else y, any_gate, scale, mean, rstd, dx, dy, sums, n,
            any_gate.stride(0), scale.stride(0), d, block, gated, WALK, 2 if block <= WIDE else 0,
            num_warps=_warps(block), enable_fp_fusion=True,
        )  # fmt: skip
    return dx, dy, sums.sum(1)
