"""Objectives that learn from another network."""

from typing import Protocol, runtime_checkable

import torch

from rfdit.batch import Batch, Latent, Time


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
