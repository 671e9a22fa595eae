"""Optimisers and learning-rate schedules, in steps."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@runtime_checkable
class Schedule(Protocol):
    """A factor on the learning rate."""

    def __call__(self, step: int) -> float:
        """The factor at an optimiser step, counted from 0."""
        ...


@runtime_checkable
class OptimizerFactory(Protocol):
    """Makes the optimiser and its schedule for given parameters."""

    def __call__(self, parameters: Iterable[torch.nn.Parameter]) -> tuple[Optimizer, LambdaLR]: ...

    def adopt(self, optimizer_state: dict[str, Any], schedule_state: dict[str, Any]) -> None:
        """Puts its own settings into saved states, so that a resumed run follows its own configuration."""
        ...


class ConstantSchedule:
    """Linear warm-up, then 1."""

    def __init__(self, *, warmup_steps: int = 0) -> None:
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


class DecaySchedule:
    """Linear warm-up, then down to `final` at `total_steps`, on a line or a half cosine."""

    def __init__(
        self, *, warmup_steps: int = 0, total_steps: int, final: float = 0.0, cosine: bool = False
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"schedule.total_steps={total_steps} must be at least 1; set trainer.max_steps")
        self.warmup = ConstantSchedule(warmup_steps=warmup_steps)
        self.total_steps, self.final, self.cosine = total_steps, final, cosine

    def __call__(self, step: int) -> float:
        if step < self.warmup.warmup_steps:  # a short run may be nothing but warm-up
            return self.warmup(step)
        decay_steps = max(1, self.total_steps - self.warmup.warmup_steps)
        done = min(1.0, (step - self.warmup.warmup_steps) / decay_steps)
        left = (1 + math.cos(math.pi * done)) / 2 if self.cosine else 1 - done
        return self.final + (1 - self.final) * left


class AdamW:
    """torch.optim.AdamW in its fused form, one kernel for all parameters."""

    def __init__(
        self, *, lr: float, betas: Sequence[float], weight_decay: float, eps: float = 1e-8, schedule: Schedule
    ) -> None:
        self.lr, self.betas, self.weight_decay, self.eps = lr, betas, weight_decay, eps
        self.schedule = schedule

    def __call__(self, parameters: Iterable[torch.nn.Parameter]) -> tuple[Optimizer, LambdaLR]:
        optimizer = torch.optim.AdamW(
            parameters, self.lr, (self.betas[0], self.betas[1]), self.eps, self.weight_decay, fused=True
        )
        # A plain function, so that a resumed run takes the schedule of its own configuration.
        return optimizer, LambdaLR(optimizer, lambda step: self.schedule(step))

    def adopt(self, optimizer_state: dict[str, Any], schedule_state: dict[str, Any]) -> None:
        """Learning rate, betas, eps and weight decay of this object; moments and step of the states."""
        now = self.lr * self.schedule(schedule_state["last_epoch"])
        settings = {"betas": tuple(self.betas), "eps": self.eps, "weight_decay": self.weight_decay}
        for group in optimizer_state["param_groups"]:
            group |= settings | {"lr": now, "initial_lr": self.lr}
        schedule_state |= {
            "base_lrs": [self.lr for _ in schedule_state["base_lrs"]],
            "_last_lr": [now for _ in schedule_state["base_lrs"]],
        }
