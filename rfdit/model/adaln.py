"""adaLN: LayerNorm without affine, the condition's scale and shift, and the gate before it."""

import os
import shutil
import warnings
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Tokens = Float[Tensor, "b n d"]
Vector = Float[Tensor, "b d"]  # one for each sample
SWITCH = "RFDIT_KERNELS"  # environment variable; 0 does without the kernels
# Triton builds its launcher with a C compiler.
TRITON = (
    torch.version.cuda is not None
    and find_spec("triton") is not None
    and bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
    and os.environ.get(SWITCH) != "0"
)


def warn_without_kernels(device: torch.device) -> None:
    """Warns on an NVIDIA GPU that the kernels are not used, and of what is missing."""
    if device.type == "cuda" and torch.version.cuda and not TRITON and os.environ.get(SWITCH) != "0":
        lacking = "a C compiler (CC, gcc or clang)" if find_spec("triton") else "the package triton"
        warnings.warn(
            f"adaLN is computed without its kernels, which takes longer, since {lacking} is missing; install it, or "
            f"set {SWITCH}=0",
            stacklevel=2,
        )


def modulated_norm(x: Tokens, shift: Vector, scale: Vector) -> Tokens:
    """norm(x) (1 + scale) + shift, in float32."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])


def norm_of(x: Tokens, shift: Vector, scale: Vector) -> tuple[Tokens, Tokens]:
    """(x, its `modulated_norm`). Go on with the x that is returned: then gradients meet in one kernel.

    The kernels have no second derivatives.
    """
    if _has_kernels(x):
        return _Normed.apply(x, shift, scale)
    return x, modulated_norm(x, shift, scale)


def gated_norm_of(x: Tokens, y: Tokens, gate: Vector, shift: Vector, scale: Vector) -> tuple[Tokens, Tokens]:
    """(x', its `modulated_norm`) of the residual stream x' = x + gate y."""
    if _has_kernels(x):
        return _GatedNormed.apply(x, y, gate, shift, scale)
    x = x + gate[:, None] * y
    return x, modulated_norm(x, shift, scale)


def _has_kernels(x: Tensor) -> bool:
    """Whether the kernels serve these tokens."""
    return TRITON and x.is_cuda and x.dtype == torch.float32


# The kernels are operators of PyTorch's, which torch.compile leaves whole. Triton is imported when one runs.
@torch.library.custom_op("rfdit::adaln_forward", mutates_args=())
def _forward(
    x: Tensor, y: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from rfdit.model import adaln_kernels

    return adaln_kernels.forward(x, y, gate, shift, scale, dtype)


@_forward.register_fake
def _(
    x: Tensor, y: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_out = x.new_empty(0) if y is None else torch.empty_like(x)
    return x_out, torch.empty_like(x, dtype=dtype), x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


@torch.library.custom_op("rfdit::adaln_backward", mutates_args=())
def _backward(
    dh: Tensor, dx_out: Tensor, x: Tensor, y: Tensor | None, gate: Tensor | None,
    scale: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from rfdit.model import adaln_kernels

    return adaln_kernels.backward(dh, dx_out, x, y, gate, scale, mean, rstd)


@_backward.register_fake
def _(
    dh: Tensor, dx_out: Tensor, x: Tensor, y: Tensor | None, gate: Tensor | None,
    scale: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dy = x.new_empty(0) if y is None else torch.empty_like(y)
    return torch.empty_like(x), dy, x.new_empty(x.shape[0], 3, x.shape[2])


def _product_dtype(x: Tensor) -> torch.dtype:
    """What the linear layer behind a norm multiplies; a norm that gives it so saves a pass."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Normed(torch.autograd.Function):
    """`norm_of` by the kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        _, h, mean, rstd = _forward(x, None, None, shift, scale, _product_dtype(x))
        ctx.save_for_backward(x, scale, mean, rstd)
        return x, h

    @staticmethod
    def backward(ctx: Any, dx_out: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale, mean, rstd = ctx.saved_tensors
        dx, _, vectors = _backward(dh.contiguous(), dx_out.contiguous(), x, None, None, scale, mean, rstd)
        dshift, dscale, _ = vectors.unbind(1)
        return dx, dshift, dscale


class _GatedNormed(torch.autograd.Function):
    """`gated_norm_of` by the kernels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, y = x.contiguous(), y.contiguous()
        x_out, h, mean, rstd = _forward(x, y, gate, shift, scale, _product_dtype(x))
        ctx.save_for_backward(x, y, gate, scale, mean, rstd)
        return x_out, h

    @staticmethod
    def backward(ctx: Any, dx_out: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, y, gate, scale, mean, rstd = ctx.saved_tensors
        dx, dy, vectors = _backward(dh.contiguous(), dx_out.contiguous(), x, y, gate, scale, mean, rstd)
        dshift, dscale, dgate = vectors.unbind(1)
        return dx, dy, dgate, dshift, dscale
