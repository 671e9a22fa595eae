"""Objectives that are given more than latents and conditions."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from rfdit.batch import Batch, Condition, Latent, Time
from rfdit.protocols import Backbone, FlowLoss, VelocityNetwork
from rfdit.randomness import SampleGenerator


@runtime_checkable
class Teacher(Protocol):
    """A frozen network from which an objective learns."""

    def read(self, batch: Batch, *, device: torch.device) -> None:
        """Take the conditions of a batch, for the next calls."""
        ...

    def __call__(self, z_t: Latent, t: Time) -> tuple[Latent, Latent]:
        """Its velocities under the conditions of the batch, and under the null condition, without gradient."""
        ...


@runtime_checkable
class HasTeacher(Protocol):
    """An objective that learns from another network. teacher: the other."""

    teacher: Teacher


@runtime_checkable
class GuidesTarget(Protocol):
    """An objective whose target may be guided, which takes the network's velocity under the null condition.

    guided: True if it is.
    """

    guided: bool

    def __call__(
        self,
        backbone: Backbone,
        z0: Latent,
        cond: Condition,
        *,
        generator: SampleGenerator,
        null: Condition | None = None,
        kept: Bool[Tensor, "b"] | None = None,
    ) -> FlowLoss:
        """As of `Objective`. null: null conditions, b rows. kept: False for samples whose condition was dropped."""
        ...


@runtime_checkable
class ComparesPairs(Protocol):
    """An objective on pairs of images of one condition, of which one is preferred.

    compares_pairs: True.
    """

    compares_pairs: bool

    def __call__(
        self,
        backbone: Backbone,
        z0: Latent,
        cond: Condition,
        *,
        generator: SampleGenerator,
        reference: VelocityNetwork,
    ) -> FlowLoss:
        """The loss of a batch of b pairs.

        reference: the network as it was before this training; it has no gradients.
        z0: (2b, c, h, w) clean latents, of all preferred images and then of the rejected ones, in the same order.
        cond: the conditions of all 2b images, equal within a pair. generator: that of the pairs, with b keys.
        """
        ...
