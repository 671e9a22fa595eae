"""From a backbone and a condition to the velocity field that is integrated."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.protocols import Backbone
from rfdit.sampler.solvers import VelocityField


@runtime_checkable
class Guidance(Protocol):
    """A closure over the conditions; no backbone knows of guidance."""

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField: ...


class NoGuidance:
    """The conditional field as the network gives it."""

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        return lambda z, t: backbone(z, t.expand(len(z)), cond)


class ClassifierFree:
    """u + scale (c - u), on all channels, from one batched evaluation (arXiv 2207.12598).

    scale: 1 is the plain conditional, at half the cost; 0 the unconditional.
    """

    def __init__(self, *, scale: float) -> None:
        if scale < 0:
            raise ValueError(f"guidance.scale={scale} must not be negative")
        self.scale = scale

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        if self.scale == 1:
            return NoGuidance()(backbone, cond, null)
        both = Condition.join([cond, null])

        def field(z: Latent, t: Tensor) -> Latent:
            c, u = backbone(z.repeat(2, 1, 1, 1), t.expand(2 * len(z)), both).chunk(2)
            return u + self.scale * (c - u)

        return field
