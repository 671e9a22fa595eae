"""Stops the run at a non-finite loss or gradient, before it reaches the weights."""

from typing import NoReturn

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from rfdit.callbacks.capabilities import RefusesSteps, SavesState, callbacks_of, flow_module
from rfdit.training.module import FlowModule


class NonFiniteLoss(ValueError):
    """The loss or its gradient became infinite or NaN."""


ADVICE = (
    "Often a learning rate that is too high (optimizer.lr, schedule.warmup_steps), no clipping "
    "(trainer.gradient_clip_val=1), attention logits out of range (model.qk_norm=true) or broken latents "
    "(autoencoder.dtype=fp32)"
)


class FiniteGuard(L.Callback):
    """Checks each loss and gradient norm before they change the weights, and saves the state if it stops.

    The check does not stall the device. The loss is copied to the host while the backward pass is queued
    behind it, and the host waits for it while the device still has that pass to do. The norm is known only
    after that pass: the device itself leaves the weights as they are, and the host learns of it a step
    later. A callback that `RefusesSteps` decides about non-finite norms in its place.
    """

    def __init__(self) -> None:
        self._finite: list[Tensor] = []  # one flag per batch since the last optimiser step
        self._gradient_finite: Tensor | None = None  # in the last optimiser step
        self._copied: torch.cuda.Event | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = flow_module(pl_module)
        if not any(guard.refuses_non_finite for guard in callbacks_of(trainer, RefusesSteps)):
            module.step_guards.append(self._refuses)

    def _refuses(self, norm: Tensor) -> Tensor:
        finite = torch.isfinite(norm)
        self._gradient_finite = self._to_host(finite)
        return ~finite

    def _to_host(self, flag: Tensor) -> Tensor:
        copy = flag.to("cpu", non_blocking=flag.is_cuda)  # elsewhere there is no event to wait for
        if flag.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()
        return copy

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach())
        if torch.distributed.is_initialized():
            # Every rank must stop, or those that go on would wait for ever.
            worst = finite.float()
            torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MIN)
            finite = worst.bool()
        self._finite.append(self._to_host(finite))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        module = flow_module(pl_module)
        if self._copied is not None:
            self._copied.synchronize()
        flags, self._finite = self._finite, []
        if not all(bool(finite) for finite in flags):
            where = self._describe(module)
            self._stop(trainer, module, f"loss became non-finite at step {trainer.global_step}{where}")
        self._check_gradient(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        self._check_gradient(trainer, flow_module(pl_module))

    def _check_gradient(self, trainer: L.Trainer, module: FlowModule) -> None:
        """Stop if the gradient of the previous step was not finite; that step was not taken."""
        if self._gradient_finite is not None and not bool(self._gradient_finite):
            self._stop(trainer, module, f"gradient became non-finite at step {trainer.global_step - 1}")

    def _stop(self, trainer: L.Trainer, module: FlowModule, what: str) -> NoReturn:
        raise NonFiniteLoss(f"the {what}; {self._save(trainer, module)}. {ADVICE}")

    @staticmethod
    def _describe(module: FlowModule) -> str:
        """The tenths of [0, 1] that hold the times of samples with a non-finite loss."""
        if module.last_loss is None:
            return ""
        bad = ~torch.isfinite(module.last_loss.per_sample)
        bins = sorted({min(int(t * 10), 9) for t in module.last_loss.t[bad].tolist()})
        return " for t in " + ", ".join(f"[{b / 10:.1f}, {(b + 1) / 10:.1f})" for b in bins) if bins else ""

    @staticmethod
    def _save(trainer: L.Trainer, module: FlowModule) -> str:
        """Save the state before this step, unless the weights are non-finite already."""
        if not all(bool(torch.isfinite(p).all()) for p in module.network.parameters()):
            return "the weights already hold non-finite numbers, so the last checkpoint was left as it is"
        for checkpoints in callbacks_of(trainer, SavesState):
            checkpoints.save_last(trainer)
            return f"the last good state is in {checkpoints.last_path}"
        return "there are no checkpoints (callbacks.checkpoints=null)"
