"""Optimisers and learning-rate schedules, counted in steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rfdit.limits import Count, Fraction, Index, Limit, NotNegative, Positive


def _are_betas(values: Sequence[object]) -> bool:
    # Checks types as well, since a wrong one is told in the same words.
    return len(values) == 2 and all(isinstance(beta, float | int) and 0 <= beta < 1 for beta in values)


Betas = Annotated[Sequence[float], Limit("two numbers, each at least 0 and less than 1", _are_betas)]


@runtime_checkable
class Schedule(Protocol):
    """A schedule of factors on the learning rate."""

    def __call__(self, step: int) -> float:
        """The factor at an optimiser step, counted from 0."""
        ...


@runtime_checkable
class ScalesInWidth(Protocol):
    """A network that muP can scale.

    inputs: the linear layers whose fan-in is not proportional to the width.
    """

    width: int
    inputs: Sequence[nn.Linear]


@runtime_checkable
class OptimizerFactory(Protocol):
    """Makes the optimiser and the schedule of a network's trained parameters."""

    def __call__(self, network: nn.Module) -> tuple[Optimizer, LambdaLR]: ...

    def adopt(self, optimizer_state: dict[str, Any], schedule_state: dict[str, Any]) -> None:
        """Put its own settings into saved states, so that a resumed run follows its own configuration."""
        ...


def refuse_step(optimizer: Optimizer, refused: Tensor) -> None:
    """Let the optimiser's next step leave weights, moments and step counts as they are if `refused` is True.

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
    """Linear warm-up, then a decay to `final` at `total_steps` along a line or half a cosine."""

    def __init__(
        self, *, warmup_steps: Index = 0, total_steps: int, final: Fraction = 0.0, cosine: bool = False
    ) -> None:
        if total_steps < 1:
            raise ValueError(
                f"schedule.total_steps={total_steps} must be at least 1, since a decay needs an end; "
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
    """torch.optim.AdamW in its fused form: one kernel for all parameters."""

    lr: NotNegative
    betas: Betas
    weight_decay: NotNegative
    eps: Positive = 1e-8
    schedule: Schedule

    @property
    def _pair(self) -> tuple[float, float]:
        """The betas as floats, which torch requires."""
        return float(self.betas[0]), float(self.betas[1])

    def __call__(self, network: nn.Module) -> tuple[Optimizer, LambdaLR]:
        optimizer = self.make(
            self.groups(network),
            lr=self.lr,
            betas=self._pair,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
        # A plain function, so that a resumed run takes the schedule of its own configuration.
        return optimizer, LambdaLR(optimizer, lambda step: self.schedule(step))

    def make(self, groups: list[dict[str, Any]], **settings: Any) -> Optimizer:
        """The optimiser itself."""
        return torch.optim.AdamW(groups, fused=True, **settings)

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """The trained parameters, in groups that have `settings` of their own."""
        return [{"params": [p for p in network.parameters() if p.requires_grad]}]

    def settings(self, group: dict[str, Any]) -> dict[str, float]:
        """Learning rate and weight decay of a group, which may be a saved one."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    def adopt(self, optimizer_state: dict[str, Any], schedule_state: dict[str, Any]) -> None:
        """Put learning rate, betas, eps and weight decay of this object into the states; moments and step stay."""
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

    base_width: the width of the model for which lr was found, at which this is plain AdamW.

    At another width, matrices whose fan-in grows with it take lr * base_width / width; biases, norms,
    embeddings and the layers that read patches, captions and time take lr. The output layer, which starts
    at zero, is one of those matrices. Their weight decay is multiplied by width / base_width, since AdamW
    multiplies it by the learning rate: what a step takes off a weight is the same at every width. Attention
    keeps 1 / sqrt(head width), since models differ in the number of heads and not in their width.
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
                "optimizer=adamw_mup cannot take over the state of optimizer=adamw; resume with optimizer=adamw"
            )
        scale = group["fan_in_width"] / self.base_width if group["fan_in_width"] else 1.0
        return {"lr": self.lr / scale, "weight_decay": self.weight_decay * scale}
