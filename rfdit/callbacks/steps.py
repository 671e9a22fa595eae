"""Optimiser steps, told apart from the batches whose gradients they gather."""

import lightning as L


class OptimizerSteps:
    """Call it after every batch: True if an optimiser step was taken since the last call.

    With `accumulate_grad_batches=N` that is one batch in N; Lightning's hooks run for each.
    """

    def __init__(self) -> None:
        self._last = 0

    def start(self, trainer: L.Trainer) -> None:
        """The run begins, or goes on, at the trainer's step."""
        self._last = trainer.global_step

    def __call__(self, trainer: L.Trainer) -> bool:
        stepped = trainer.global_step != self._last
        self._last = trainer.global_step
        return stepped
