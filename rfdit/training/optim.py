"""Optimisers and learning-rate schedules, in steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rfdit.limits import Count, Index, Limit, NotNegative, Positive, Share


def _are_betas(values: Sequence[object]) -> bool:
    # Types as well: of a long list, beartype looks at one.
    return len(values) == 2 and all(isinstance(beta, float | int) and 0 <= beta < 1 for beta in values)


Betas = Annotated[Sequence[float], Limit("two numbers, each at least 0 and less than 1", _are_betas)]


@runtime_checkable
class Schedule(Protocol):
    """A factor on the learning rate."""

    def __call__(self, step: int) -> float:
        """The factor at an optimiser step, counted from 0."""
        ...


@runtime_checkable
class ScalesInWidth(Protocol):
    """A network of which muP can be asked.

    inputs: the linear layers whose fan-in is not proportional to the width.
    """

    width: int
    inputs: Sequence[nn.Linear]


@runtime_checkable
class OptimizerFactory(Protocol):
    """Makes the optimiser and its schedule for what is trained of a network."""

    def __call__(self, network: nn.Module) -> tuple[Optimizer, LambdaLR]: ...

    def adopt(self, optimizer_state: dict[str, Any], schedule_state: dict[str, Any]) -> None:
        """Puts its own settings into saved states, so that a resumed run follows its own configuration."""
        ...


def refuse_step(optimizer: Optimizer, refused: Tensor) -> None:
    """The optimiser's next step leaves weights, moments and step counts as they are where `refused` is True.

    Fused kernels read that on the device (it is how gradient scaling skips a step), so nothing waits
    for it; other optimisers lose their gradients, for which the host has to know.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = refused.float()  # type: ignore[attr-defined]
    elif bool(refused):
        optimizer.zero_grad(set_to_none=True)


class ConstantSchedule:
    """Linear warm-up, then 1."""

    def __init__(self, *, warmup_steps: Index = 0) -> None:
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


class DecaySchedule:
    """Linear warm-up, then down to `final` at `total_steps`, on a line or a half cosine."""

    def __init__(
        self, *, warmup_steps: Index = 0, total_steps: int, final: Share = 0.0, cosine: bool = False
    ) -> None:
        if total_steps < 1:
            raise ValueError(
                f"schedule.total_steps={total_steps} must be at least 1, since what decays needs an end; "
                "set trainer.max_steps, or use schedule=constant"
            )
        self.warmup = ConstantSchedule(warmup_steps=warmup_steps)
        self.total_steps, self.final, self.cosine = total_steps, final, cosine

    def __call__(self, step: int) -> float:
        if step < self.warmup.warmup_steps:  # a short run may be nothing but warm-up
            return self.warmup(step)
        decay_steps = max(1, self.total_steps - self.warmup.warmup_steps)
        done = min(1.0, (step - self.warmup.warmup_steps) / decay_steps)
        left = (1 + math.cos(math.pi * done)) / 2 if self.cosine else 1 - done
        return self.final + (1 - self.final) * left


@dataclass(kw_only=True)
class AdamW:
    """torch.optim.AdamW in its fused form, one kernel for all parameters."""

    lr: NotNegative
    betas: Betas
    weight_decay: NotNegative
    eps: Positive = 1e-8
    schedule: Schedule

    @property
    def _pair(self) -> tuple[float, float]:
        """The betas as torch takes them, which takes no integers."""
        return float(self.betas[0]), float(self.betas[1])

    def __call__(self, network: nn.Module) -> tuple[Optimizer, LambdaLR]:
        optimizer = torch.optim.AdamW(
            self.groups(network), self.lr, self._pair, self.eps, self.weight_decay,
            fused=True,
        )  # fmt: skip
        # A plain function, so that a resumed run takes the schedule of its own configuration.
        return optimizer, LambdaLR(optimizer, lambda step: self.schedule(step))

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """The trained parameters, in groups with `settings` of their own."""
        return [{"params": [p for p in network.parameters() if p.requires_grad]}]

    def settings(self, group: dict[str, Any]) -> dict[str, float]:
        """Learning rate and weight decay of a group, a saved one too."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    def adopt(self, optimizer_state: dict[str, Any], schedule_state: dict[str, Any]) -> None:
        """Learning rate, betas, eps and weight decay of this object; moments and step of the states."""
        factor = self.schedule(schedule_state["last_epoch"])
        base, now = [], []
        for group in optimizer_state["param_groups"]:
            own = self.settings(group)
            base.append(own["lr"])
            now.append(own["lr"] * factor)
            group |= own | {"betas": self._pair, "eps": self.eps}
            group |= {"lr": now[-1], "initial_lr": base[-1]}
        schedule_state |= {"base_lrs": base, "_last_lr": now}


@dataclass(kw_only=True)
class AdamWMuP(AdamW):
    """AdamW under the maximal update parametrisation (muP, arXiv 2203.03466, table 3).

    base_width: the model's width at which it is plain AdamW, where lr was found.

    At another width, matrices whose fan-in grows with it take lr * base_width / width; biases, norms,
    embeddings and the layers that read patches, captions and time take lr. The output layer starts at
    zero and is one of the former. Their weight decay is multiplied by width / base_width, since AdamW
    multiplies it by the learning rate: what a step takes off a weight is the same at every width.
    Attention keeps 1 / sqrt(head): sizes differ in the number of heads, not in theirs.
    Raises ValueError for a backbone that does not say which of its layers read `inputs`.
    """

    base_width: Count

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        backbone = network.get_submodule("backbone")
        if not isinstance(backbone, ScalesInWidth):
            raise ValueError(
                f"optimizer=adamw_mup needs a model with `width` and `inputs`, and {type(backbone).__name__} "
                "does not have them; use optimizer=adamw"
            )
        linears = (m for m in backbone.modules() if isinstance(m, nn.Linear) and m not in backbone.inputs)
        grows = {id(linear.weight) for linear in linears}
        trained = [p for p in network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if id(p) in grows], "fan_in_width": backbone.width},
            {"params": [p for p in trained if id(p) not in grows], "fan_in_width": None},
        ]
        return [group | self.settings(group) for group in groups]

    def settings(self, group: dict[str, Any]) -> dict[str, float]:
        if "fan_in_width" not in group:
            raise ValueError(
                "optimizer=adamw_mup cannot take over the state of optimizer=adamw; resume with that"
            )
        scale = group["fan_in_width"] / self.base_width if group["fan_in_width"] else 1.0
        return {"lr": self.lr / scale, "weight_decay": self.weight_decay * scale}
