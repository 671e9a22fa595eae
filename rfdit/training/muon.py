"""Muon: a momentum step whose matrices are orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden
layers in neural networks"), with AdamW for all that is not a hidden matrix.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from rfdit.device import multiplies_bf16_fast
from rfdit.ema.averages import local
from rfdit.limits import BelowOne, NotNegative
from rfdit.training.optim import AdamW

Matrices = Float[Tensor, "k rows columns"]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of a polynomial that drives singular values into about [0.7, 1.2]
FUSED = ".qkv.weight"  # queries, keys and values in one parameter: three matrices


def orthogonalize(matrices: Matrices, *, iterations: int = 5, dtype: torch.dtype = torch.float32) -> Matrices:
    """About the nearest semi-orthogonal matrices: U V^T of M = U S V^T, by a Newton-Schulz iteration.

    X <- a X + (b A + c A^2) X with A = X X^T, from X = M / |M|. The coefficients trade accuracy for speed:
    the singular values of the result lie between 0.7 and 1.2 instead of at 1.
    dtype: of the products.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the smaller of the two squares is cheaper
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class MuonWithAdamW(torch.optim.AdamW):
    """Muon for the groups with `matrices`, each parameter of which is so many matrices, one above the other.

    M <- momentum M + (1 - momentum) G;  W <- (1 - lr weight_decay) W - lr sqrt(max(1, rows / columns)) U V^T
    of G + momentum (M - G), Nesterov's look-ahead. AdamW, fused, for all other groups.

    dtype: of the iteration. Under FSDP a matrix is gathered, orthogonalised on every rank, and each keeps its share.
    """

    def __init__(self, groups: list[dict[str, Any]], *, dtype: torch.dtype, **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)
        self._dtype = dtype

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                if group["matrices"]:
                    self._step_matrices(group)
        super().step()  # passes over the matrices, which have no gradient any more
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:  # AdamW expects `step` in a state that is loaded
                self.state[p] |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(p)}
        momenta = [local(self.state[p]["momentum_buffer"]) for p in parameters]
        gradients = [local(p.grad) for p in parameters]
        refused = getattr(self, "found_inf", None)  # see `refuse_step`
        if refused is not None:
            gradients = [torch.where(refused > 0, m, g) for m, g in zip(momenta, gradients, strict=True)]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        lr = group["lr"] if refused is None else group["lr"] * (1 - refused)
        for parameter, step in zip(
            parameters, self._steps(parameters, ahead, group["matrices"]), strict=True
        ):
            weights = local(parameter)
            if group["weight_decay"]:
                weights.mul_(1 - lr * group["weight_decay"])
            weights.sub_(lr * step)
            parameter.grad = None

    def _steps(
        self, parameters: Sequence[nn.Parameter], ahead: Sequence[Tensor], matrices: int
    ) -> Sequence[Tensor]:
        """Each parameter's orthogonalised step, as `local` has it; parameters of one shape in one batch."""
        batches: dict[torch.Size, list[int]] = defaultdict(list)
        for i, parameter in enumerate(parameters):
            batches[parameter.shape].append(i)
        steps = list(ahead)
        for (rows, columns), members in batches.items():
            whole = [gathered(ahead[i], parameters[i]).view(matrices, -1, columns) for i in members]
            found = orthogonalize(torch.cat(whole), dtype=self._dtype)
            found *= math.sqrt(max(1, rows / matrices / columns))
            for i, step in zip(members, found.view(len(members), rows, columns), strict=True):
                steps[i] = share_of(step, parameters[i])
        return steps


def gathered(share: Tensor, parameter: nn.Parameter) -> Tensor:
    """The whole tensor of which each rank has the share that it has of a parameter."""
    if not isinstance(parameter, DTensor):
        return share
    mesh, placements = parameter.device_mesh, parameter.placements
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(
        share, mesh, placements, run_check=False, shape=shape, stride=stride
    ).full_tensor()


def share_of(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's share of a tensor that every rank has, sharded as a parameter is."""
    if not isinstance(parameter, DTensor):
        return whole
    everywhere = [Replicate()] * parameter.device_mesh.ndim
    spread = DTensor.from_local(whole, parameter.device_mesh, everywhere, run_check=False)
    return spread.redistribute(placements=parameter.placements).to_local()


@dataclass(kw_only=True)
class Muon(AdamW):
    """`MuonWithAdamW` for the matrices of the blocks' linear layers; the rest of the settings are AdamW's.

    Embeddings, the first and the last layer, modulations, biases and norms are AdamW's, with `lr`.
    matrix_lr: learning rate of the matrices, which needs no change with the width. momentum: of their
    gradients. The iteration runs in bf16 where the device multiplies it fast, else in float32.
    """

    matrix_lr: NotNegative = 0.02
    momentum: BelowOne = 0.95

    def make(self, groups: list[dict[str, Any]], **settings: Any) -> Optimizer:
        device = groups[0]["params"][0].device
        dtype = torch.bfloat16 if multiplies_bf16_fast(device) else torch.float32
        return MuonWithAdamW(groups, dtype=dtype, **settings)

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        blocks = network.get_submodule("backbone.blocks")
        linears = {id(m.weight) for m in blocks.modules() if isinstance(m, nn.Linear)}
        members: dict[int, list[nn.Parameter]] = {1: [], 3: [], 0: []}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                hidden = id(parameter) in linears
                members[(3 if name.endswith(FUSED) else 1) if hidden else 0].append(parameter)
        groups = [
            {"params": params, "matrices": n, "momentum": self.momentum} for n, params in members.items()
        ]
        return [group | self.settings(group) for group in groups if group["params"]]

    def settings(self, group: dict[str, Any]) -> dict[str, float]:
        if "matrices" not in group:
            raise ValueError(
                "optimizer=muon cannot take over the state of optimizer=adamw; resume with optimizer=adamw"
            )
        lr = self.matrix_lr if group["matrices"] else self.lr
        return {"lr": lr, "weight_decay": self.weight_decay, "momentum": self.momentum}
