"""A non-finite loss stops the run before it reaches the weights."""

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from rfdit.callbacks.checkpoints import Checkpoints
from rfdit.training.module import FlowModule


class NonFiniteLoss(ValueError):
    """The loss became infinite or NaN."""


class FiniteGuard(L.Callback):
    """Looks at each loss before its gradient is applied; the state before that step is saved.

    The look costs no stall: the loss was copied to the host while the backward pass was queued
    behind it, and is waited for when the device still has that pass to do.
    """

    def __init__(self) -> None:
        self._finite: list[Tensor] = []  # of each batch since the last optimiser step
        self._copied: torch.cuda.Event | None = None

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach())
        if torch.distributed.is_initialized():
            # Every rank must stop, or the others would wait for it for ever.
            worst = finite.float()
            torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MIN)
            finite = worst.bool()
        self._finite.append(finite.to("cpu", non_blocking=True))
        if finite.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        looked_at, self._finite = self._finite, []
        if all(bool(finite) for finite in looked_at):
            return
        assert isinstance(pl_module, FlowModule)
        where = self._describe(pl_module)
        saved = self._save(trainer, pl_module)
        raise NonFiniteLoss(
            f"the loss became non-finite at step {trainer.global_step}{where}; {saved}. Often a learning rate "
            "that is too high (optimizer.lr, schedule.warmup_steps), no clipping (trainer.gradient_clip_val=1), "
            "attention logits out of range (model.qk_norm=true) or broken latents (autoencoder.dtype=fp32)"
        )

    @staticmethod
    def _describe(module: FlowModule) -> str:
        """The tenths of [0, 1] in which the samples' times lie whose loss is not finite."""
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
