"""Exponential moving average of the trained weights: what is validated, sampled and shipped."""

import copy
from typing import Any

import lightning as L
import torch

from rfdit.callbacks.steps import OptimizerSteps
from rfdit.network import Network
from rfdit.training.module import FlowModule


class EMA(L.Callback):
    """Owns a frozen float32 copy of the network, moved towards it after every optimiser step.

    decay: how much of the average a step keeps; 0.9999 in DiT and SiT.
    warmup: keep less at first, (1 + n) / (10 + n) after n updates, so that short runs are averaged too.

    The copy starts as the initial weights and is evaluated in their place; nothing is ever swapped.
    It is updated in a callback's hook, which runs before checkpoints are written.
    """

    def __init__(self, *, decay: float = 0.9999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay} must be at least 0 and less than 1")
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.network: Network | None = None
        self._saved: dict[str, Any] | None = None
        self._steps = OptimizerSteps()

    def decay_at(self, updates: int) -> float:
        """The decay of the update after `updates` of them."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, FlowModule)
        self.network = copy.deepcopy(pl_module.network).float().requires_grad_(False).eval()
        pl_module.averages = {"ema": self.network}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps.start(trainer)
        self.network.to(pl_module.device)
        if self._saved is not None:
            self.network.load_state_dict(self._saved["network"])
            self.updates, self._saved = self._saved["updates"], None
        else:
            self.network.load_state_dict(pl_module.network.state_dict())
        pairs = zip(self.network.parameters(), pl_module.network.parameters())
        local = lambda p: p.to_local() if hasattr(p, "to_local") else p
        trained = [(local(mean), local(weight)) for mean, weight in pairs if weight.requires_grad]
        self._averages = [average for average, _ in trained]
        self._weights = [weight for _, weight in trained]
        pl_module.evaluate_with(self.network)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not self._steps(trainer):
            return
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay_at(self.updates))
        self.updates += 1

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.network is not None:
            checkpoint["ema"] = {"ema": {"network": self.network.state_dict(), "updates": self.updates}}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Without an average in it, the checkpoint's weights start one.
        self._saved = checkpoint.get("ema", {}).get("ema")
