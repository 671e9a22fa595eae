"""From a backbone and a condition to the velocity field that is integrated."""

import copy
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.protocols import Backbone
from rfdit.sampler.solvers import VelocityField

VelocityPair = Callable[[Latent, Tensor], tuple[Latent, Latent]]  # (z, t of shape ()) -> c, u


@runtime_checkable
class Guidance(Protocol):
    """A closure over the conditions; no backbone knows of guidance."""

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField: ...


def velocity(backbone: Backbone, cond: Condition) -> VelocityField:
    """The field of one network under one condition, in float32."""
    cond = without_padding(cond)
    return lambda z, t: backbone(z, t.to(z.device).expand(len(z)), cond).float()


def velocity_pair(backbone: Backbone, cond: Condition, null: Condition, *, batched: bool) -> VelocityPair:
    """The conditional and the null velocity, from one evaluation of twice the batch or from two."""
    if not batched:
        c, u = velocity(backbone, cond), velocity(backbone, null)
        return lambda z, t: (c(z, t), u(z, t))
    both = velocity(backbone, Condition.join([cond, null]))

    def pair(z: Latent, t: Tensor) -> tuple[Latent, Latent]:
        c, u = both(z.repeat(2, 1, 1, 1), t).chunk(2)
        return c, u

    return pair


def without_padding(cond: Condition) -> Condition:
    """The condition without tokens that are padding in every row: nothing attends to them.

    A sampler asks the network many times, and captions are much shorter than their encoder's length.
    """
    if cond.tokens is None or cond.mask is None:
        return cond
    present = cond.mask.any(dim=0)
    mask = cond.mask[:, present]
    return Condition(cond.pooled, cond.tokens[:, present], None if bool(mask.all()) else mask)


def with_scale(guidance: Guidance, scale: float) -> Guidance:
    """The same guidance, or the one inside an interval, of another scale; networks are shared.

    Raises ValueError for a guidance that has none.
    """
    other = copy.copy(guidance)
    if isinstance(other, GuidanceInterval):
        other.inside = with_scale(other.inside, scale)
    elif hasattr(other, "scale"):
        other.scale = check_scale(scale)
    else:
        raise ValueError(
            f"scales needs a guidance with a scale, and {type(guidance).__name__} has none; use guidance=cfg"
        )
    return other


def check_scale(scale: float) -> float:
    """`scale` itself; raises ValueError below 0."""
    if scale < 0:
        raise ValueError(f"guidance.scale={scale} must not be negative")
    return scale


class NoGuidance:
    """The conditional field as the network gives it."""

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        return velocity(backbone, cond)


class ClassifierFree:
    """u + scale (c - u), on all channels (arXiv 2207.12598).

    scale: 1 is the plain conditional, at half the cost; 0 the unconditional.
    batched: c and u from one evaluation of twice the batch, or from two where memory is short.
    """

    def __init__(self, *, scale: float, batched: bool = True) -> None:
        self.scale, self.batched = check_scale(scale), batched

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        if self.scale == 1:
            return velocity(backbone, cond)
        pair = velocity_pair(backbone, cond, null, batched=self.batched)

        def field(z: Latent, t: Tensor) -> Latent:
            c, u = pair(z, t)
            return u + self.scale * (c - u)

        return field


class ThreeChannel:
    """Classifier-free guidance of the first three channels alone, the others conditional.

    Only for comparing with numbers published for DiT and SiT, whose code samples so.
    """

    def __init__(self, *, scale: float, batched: bool = True) -> None:
        self.scale, self.batched = check_scale(scale), batched

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        pair = velocity_pair(backbone, cond, null, batched=self.batched)

        def field(z: Latent, t: Tensor) -> Latent:
            c, u = pair(z, t)
            return torch.cat([u[:, :3] + self.scale * (c[:, :3] - u[:, :3]), c[:, 3:]], dim=1)

        return field


class Autoguidance:
    """weak + scale (strong - weak), where weak is a smaller or less trained network (arXiv 2406.02507).

    scale: 1 is the strong one alone, and the weak one is not asked.
    guide: the weak network. It is given what is called `null` elsewhere: the samples' condition as
        the guide's own conditioner makes it (`Pipeline.guide`).
    """

    def __init__(self, *, scale: float, guide: Backbone) -> None:
        self.scale, self.guide = check_scale(scale), guide

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        strong, weak = velocity(backbone, cond), velocity(self.guide, null)
        if self.scale == 1:
            return strong

        def field(z: Latent, t: Tensor) -> Latent:
            v = weak(z, t)
            return v + self.scale * (strong(z, t) - v)

        return field


class GuidanceInterval:
    """Another guidance where low <= t <= high, the plain conditional elsewhere (arXiv 2404.07724).

    low, high: times. A noise level sigma of that paper, with unit data, is t = sigma / (1 + sigma).
    """

    def __init__(self, *, inside: Guidance, low: float, high: float) -> None:
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance.low={low}, high={high} must be an interval within 0 and 1")
        self.inside, self.low, self.high = inside, low, high

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        guided, plain = self.inside(backbone, cond, null), velocity(backbone, cond)
        return lambda z, t: guided(z, t) if self.low <= t <= self.high else plain(z, t)
