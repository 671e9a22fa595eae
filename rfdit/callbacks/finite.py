"""A non-finite loss or gradient stops the run before it reaches the weights."""

from typing import NoReturn

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from rfdit.callbacks.checkpoints import Checkpoints
from rfdit.callbacks.spikes import SpikeGuard
from rfdit.training.module import FlowModule


class NonFiniteLoss(ValueError):
    """The loss or its gradient became infinite or NaN."""


ADVICE = (
    "Often a learning rate that is too high (optimizer.lr, schedule.warmup_steps), no clipping "
    "(trainer.gradient_clip_val=1), attention logits out of range (model.qk_norm=true) or broken latents "
    "(autoencoder.dtype=fp32)"
)


class FiniteGuard(L.Callback):
    """Looks at each loss and gradient norm before they change the weights, whose state is then saved.

    The look costs no stall. The loss was copied to the host while the backward pass was queued behind
    it, and is waited for when the device still has that pass to do. The norm is known only after that
    pass: the device itself leaves the weights as they are, and the host hears of it a step later.
    Where a `SpikeGuard` is, it decides about non-finite norms.
    """

    def __init__(self) -> None:
        self._finite: list[Tensor] = []  # of each batch since the last optimiser step
        self._gradient_finite: Tensor | None = None  # of the last optimiser step
        self._copied: torch.cuda.Event | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, FlowModule)
        if not any(isinstance(callback, SpikeGuard) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            pl_module.step_guards.append(self._refuses)

    def _refuses(self, norm: Tensor) -> Tensor:
        finite = torch.isfinite(norm)
        self._gradient_finite = self._to_host(finite)
        return ~finite

    def _to_host(self, flag: Tensor) -> Tensor:
        copy = flag.to("cpu", non_blocking=True)
        if flag.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()
        return copy

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach())
        if torch.distributed.is_initialized():
            # Every rank must stop, or the others would wait for it for ever.
            worst = finite.float()
            torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MIN)
            finite = worst.bool()
        self._finite.append(self._to_host(finite))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        looked_at, self._finite = self._finite, []
        if not all(bool(finite) for finite in looked_at):
            where = self._describe(pl_module)
            self._stop(trainer, pl_module, f"loss became non-finite at step {trainer.global_step}{where}")
        self._look_at_gradient(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        self._look_at_gradient(trainer, pl_module)

    def _look_at_gradient(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """At that of the step before this, which was not taken if it was not finite."""
        if self._gradient_finite is not None and not bool(self._gradient_finite):
            self._stop(trainer, module, f"gradient became non-finite at step {trainer.global_step - 1}")

    def _stop(self, trainer: L.Trainer, module: L.LightningModule, what: str) -> NoReturn:
        assert isinstance(module, FlowModule)
        raise NonFiniteLoss(f"the {what}; {self._save(trainer, module)}. {ADVICE}")

    @staticmethod
    def _describe(module: L.LightningModule) -> str:
        """The tenths of [0, 1] in which the samples' times lie whose loss is not finite."""
        assert isinstance(module, FlowModule)
        if module.last_loss is None:
            return ""
        bad = ~torch.isfinite(module.last_loss.per_sample)
        bins = sorted({min(int(t * 10), 9) for t in module.last_loss.t[bad].tolist()})
        return " for t in " + ", ".join(f"[{b / 10:.1f}, {(b + 1) / 10:.1f})" for b in bins) if bins else ""

    @staticmethod
    def _save(trainer: L.Trainer, module: FlowModule) -> str:
        """Saves the state before this step, unless that is spoilt already."""
        if not all(bool(torch.isfinite(p).all()) for p in module.network.parameters()):
            return "the weights already hold non-finite numbers, so the last checkpoint was left as it is"
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                callback.save_last(trainer)
                return f"the last good state is in {callback.last_path}"
        return "no checkpoint is kept (callbacks.checkpoints=null)"
