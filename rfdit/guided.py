"""Forward passes of networks that take the scale of guidance as an input."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.batch import Time
from rfdit.protocols import StandsFor

Scale = float | Float[Tensor, "b"]


@runtime_checkable
class TakesGuidance(Protocol):
    """A backbone with an input for the scale of guidance, whose effect it has learned.

    guidance: the scale of its next forward passes, one for all samples or (b,); None if it has no such input.
    """

    guidance: Scale | None


def guided_network(backbone: object) -> TakesGuidance | None:
    """The network within a backbone that takes the scale of guidance; None if there is no such input."""
    network = backbone.network if isinstance(backbone, StandsFor) else backbone
    return network if isinstance(network, TakesGuidance) and network.guidance is not None else None


@contextmanager
def at_scale(network: TakesGuidance, scale: Scale) -> Iterator[None]:
    """Context in which a network is evaluated at this scale of guidance."""
    own = network.guidance
    network.guidance = scale
    try:
        yield
    finally:
        network.guidance = own


def scales(guidance: Scale | None, like: Time) -> Time:
    """The scale of each sample, (b,). like: their times."""
    if isinstance(guidance, Tensor):
        return guidance
    return torch.full_like(like, float(guidance or 0.0))
