"""Skips the steps whose gradient is an outlier."""

from typing import Annotated, Any

import lightning as L
import torch
from torch import Tensor

from rfdit.callbacks.capabilities import flow_module, logged_step
from rfdit.limits import Count, Limit


class LastingSpike(ValueError):
    """Too many steps in a row had to be skipped."""


class SpikeGuard(L.Callback):
    """Skips the steps whose gradient norm, before clipping, is an outlier or not finite, and counts them.

    factor: an outlier is more than this times the median of the last `window` norms; no finite norm is
        an outlier before there are that many.
    patience: this many skipped steps in a row end the run, at the next step that is logged.
    every_n_steps: interval at which `train/skipped_steps`, the number since the run began, is logged.

    A skipped step leaves weights, moments and the optimiser's step count as they are. It counts as a
    step of the run: the schedule goes on, and the averages follow the weights as they are. Outliers enter
    the median as well, so that a gradient that stays large becomes the new normal.

    The decision is made on the device, from the norm that all ranks share, and nothing waits for it.
    """

    refuses_non_finite = True

    def __init__(
        self,
        *,
        factor: Annotated[float, Limit("more than 1, the median itself", lambda factor: factor > 1)],
        window: Count = 100,
        patience: Count = 50,
        every_n_steps: Count = 50,
    ) -> None:
        self.factor, self.window, self.patience = factor, window, patience
        self.every_n_steps = every_n_steps
        self._norms = torch.full((window,), torch.nan)  # oldest first; NaN where there was no finite one
        self._count = 0
        self._skipped = self._in_a_row = torch.zeros((), dtype=torch.int64)

    @property
    def skipped(self) -> int:
        """Steps skipped since the run began; waits for the device."""
        return int(self._skipped)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not before: some strategies restore a checkpoint after on_fit_start.
        module = flow_module(pl_module)
        device = module.device
        self._norms, self._skipped = self._norms.to(device), self._skipped.to(device)
        self._in_a_row = self._in_a_row.to(device)
        module.step_guards.append(self._refuses)

    def _refuses(self, norm: Tensor) -> Tensor:
        finite = torch.isfinite(norm)
        refused = ~finite
        if self._count >= self.window:
            refused = refused | (norm > self.factor * self._norms.nanmedian())
        # Out of place: the old tensor may be a logged value by now.
        self._norms = torch.cat([self._norms[1:], torch.where(finite, norm, torch.nan)[None]])
        self._count += 1
        self._skipped = self._skipped + refused
        self._in_a_row = (self._in_a_row + 1) * refused
        return refused

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.log("train/skipped_steps", self._skipped.float())
        if logged_step(trainer, self.every_n_steps) and int(self._in_a_row) >= self.patience:
            raise LastingSpike(
                f"{int(self._in_a_row)} steps in a row were skipped up to step {trainer.global_step}, since "
                f"their gradient norms were not finite or above {self.factor} times the median; see "
                "train/grad_norm, and resume from before that with a lower optimizer.lr"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "norms": self._norms.cpu(),
            "count": self._count,
            "skipped": int(self._skipped),
            "in_a_row": int(self._in_a_row),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        norms = state_dict["norms"]
        # The window may have another length now.
        self._norms = torch.cat([torch.full((self.window,), torch.nan), norms])[-self.window :]
        self._count = min(state_dict["count"], len(norms))
        self._skipped, self._in_a_row = (torch.tensor(state_dict[k]) for k in ("skipped", "in_a_row"))
