"""adaLN's kernels for GPUs, in Triton.

Written as PyTorch operations, a block's norms, modulations and gates read every token several times, also
when the compiler fuses them: a norm's backward pass sums along the width of each token, and the gradients
of shift, scale and gate sum over the tokens of each sample, which it cannot do in one kernel. Here a
program walks over tokens of one sample, keeps the sums over tokens in registers, and reads and writes each
token once. What is computed is `rfdit.model.adaln`'s, in float32.

x, x': (b, n, d) float32, the residual stream before and after the gate. y: (b, n, d), what the gate lets
in. shift, scale, gate: (b, d) float32, rows of a larger table. h: (b, n, d), norm(x') (1 + scale) + shift.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 1e-6
# The widest tokens of which a backward pass loads two ahead: more would not fit into every GPU's shared memory.
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
        opened = _load(gate, sample * gate_stride, columns, inside)
        value += opened * _load(y, row * WIDTH, columns, inside)
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
        opened = _load(gate, sample * gate_stride, columns, inside)
    first = part * WALK
    for token in tl.range(first, min(first + WALK, tokens), num_stages=AHEAD + 1):
        row = sample * tokens + token
        value = _load(x, row * WIDTH, columns, inside)
        if GATED:
            let_in = _load(y, row * WIDTH, columns, inside)
            value += opened * let_in
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
            dgate += result * let_in
            tl.store(dy + row * WIDTH + columns, (result * opened).to(dy.dtype.element_ty), mask=inside)
    place = sums + (sample * tl.num_programs(1) + part) * 3 * WIDTH + columns
    tl.store(place, dshift, mask=inside)
    tl.store(place + WIDTH, dscale, mask=inside)
    if GATED:
        tl.store(place + 2 * WIDTH, dgate, mask=inside)


def _warps(block: int) -> int:
    """Sixteen numbers a thread: few warps whose sums have to be added, and registers enough for them."""
    return max(1, min(16, block // 512))


def _in_rows(vectors: Tensor) -> Tensor:
    """One number after the other, as kernels read them."""
    return vectors if vectors.stride(-1) == 1 else vectors.contiguous()


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton starts kernels on the current GPU, wherever their tensors are."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def forward(
    x: Tensor, y: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x', h, mean, rstd); x' is empty without a gate."""
    b, n, d = x.shape
    gate, shift, scale = None if gate is None else _in_rows(gate), _in_rows(shift), _in_rows(scale)
    gated = y is not None and gate is not None
    x_out = torch.empty_like(x) if gated else x.new_empty(0)
    h = torch.empty_like(x, dtype=dtype)
    mean, rstd = x.new_empty(b, n), x.new_empty(b, n)
    block = triton.next_power_of_2(d)
    some = shift if gate is None else gate
    with _device_of(x):
        _forward[(b * n,)](
            x, x if y is None else y, some, shift, scale, x_out, h, mean, rstd, n,
            some.stride(0), shift.stride(0), scale.stride(0), d, block, gated, EPS,
            num_warps=_warps(block), enable_fp_fusion=True,
        )  # fmt: skip
    return x_out, h, mean, rstd


def backward(
    dh: Tensor, dx_out: Tensor, x: Tensor, y: Tensor | None, gate: Tensor | None,
    scale: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of y, and (b, 3, d) of shift, scale and gate, from those of h and x'.

    Without a gate y's is empty, and the gate's is not written.
    """
    b, n, d = x.shape
    gate, scale = None if gate is None else _in_rows(gate), _in_rows(scale)
    gated = y is not None and gate is not None
    dx = torch.empty_like(x)
    dy = torch.empty_like(x if y is None else y) if gated else x.new_empty(0)
    parts = triton.cdiv(n, WALK)
    sums = x.new_empty(b, parts, 3, d)
    block = triton.next_power_of_2(d)
    some = scale if gate is None else gate
    with _device_of(x):
        _backward[(b, parts)](
            dh, dx_out, x, x if y is None else y, some, scale, mean, rstd, dx, dy, sums, n,
            some.stride(0), scale.stride(0), d, block, gated, WALK, 2 if block <= WIDE else 0,
            num_warps=_warps(block), enable_fp_fusion=True,
        )  # fmt: skip
    return dx, dy, sums.sum(1)
