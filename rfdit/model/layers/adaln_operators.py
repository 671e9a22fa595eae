"""`rfdit.model.layers.adaln` on NVIDIA GPUs: its Triton kernels as PyTorch operators with gradients.

torch.compile leaves the operators whole; Triton is imported when one of them runs.
"""

import os
import shutil
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

SWITCH = "RFDIT_KERNELS"  # environment variable; 0 does without the kernels
# Triton builds its launcher with a C compiler.
TRITON = (
    torch.version.cuda is not None
    and find_spec("triton") is not None
    and bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
    and os.environ.get(SWITCH) != "0"
)


def has_kernels(x: Tensor) -> bool:
    """True if the kernels can serve these tokens: float32, on a GPU for which Triton can build them.

    They have no forward-mode derivatives, so that they do not serve where these are computed.
    """
    return TRITON and x.is_cuda and x.dtype == torch.float32 and not _differentiates_forward()


def _differentiates_forward() -> bool:
    # The compiler never sees it: what it has compiled drops forward-mode derivatives.
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def warn_without_kernels(device: torch.device) -> None:
    """Warns on an NVIDIA GPU if the kernels are not used, and names the missing dependency."""
    if device.type == "cuda" and torch.version.cuda and not TRITON and os.environ.get(SWITCH) != "0":
        lacking = "a C compiler (CC, gcc or clang)" if find_spec("triton") else "the package triton"
        warnings.warn(
            f"adaLN is computed without its kernels, which takes longer, since {lacking} is missing; install it, or "
            f"set {SWITCH}=0",
            stacklevel=2,
        )


@torch.library.custom_op("rfdit::adaln_forward", mutates_args=())
def _forward(
    x: Tensor, y: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from rfdit.model.layers import adaln_kernels

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
    from rfdit.model.layers import adaln_kernels

    return adaln_kernels.backward(dh, dx_out, x, y, gate, scale, mean, rstd)


@_backward.register_fake
def _(
    dh: Tensor, dx_out: Tensor, x: Tensor, y: Tensor | None, gate: Tensor | None,
    scale: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dy = x.new_empty(0) if y is None else torch.empty_like(y)
    return torch.empty_like(x), dy, x.new_empty(x.shape[0], 3, x.shape[2])


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which the linear layer behind a norm multiplies; a norm that gives it so saves a pass."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class AdaLN(torch.autograd.Function):
    """`rfdit.model.layers.adaln.adaln` by the kernels, which have no second derivatives."""

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


class GatedAdaLN(torch.autograd.Function):
    """`rfdit.model.layers.adaln.gated_adaln` by the kernels, which have no second derivatives."""

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
