"""Guidance: velocity fields from a network, a condition, and a condition to move away from."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.limits import Fraction, NotNegative
from rfdit.model.routing import without_path
from rfdit.protocols import VelocityNetwork, takes_guidance
from rfdit.sampler.solvers import VelocityField

VelocityPair = Callable[[Latent, Tensor], tuple[Latent, Latent]]  # (z, t of shape ()) -> c, u


@runtime_checkable
class Guidance(Protocol):
    """Makes the field that a solver integrates from evaluations of a network."""

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        """A field (z of (b, c, h, w), t of ()) -> v, float32.

        cond, null: the conditions to follow and to move away from, b rows each.
        """
        ...


@runtime_checkable
class HasScale(Protocol):
    """A guidance of adjustable strength. scale: 1 is the plain conditional."""

    scale: float


@runtime_checkable
class Unscaled(Protocol):
    """A guidance without a scale that is another one at scale 1."""

    def scaled(self, scale: float) -> Guidance:
        """The other guidance."""
        ...


@runtime_checkable
class HasGuide(Protocol):
    """A guidance with a network of its own. guide: the network that it moves away from."""

    guide: VelocityNetwork


@runtime_checkable
class ChecksNetwork(Protocol):
    """A guidance that not every network serves."""

    def check(self, network: VelocityNetwork) -> None:
        """Raises ValueError for one that does not."""
        ...


@runtime_checkable
class HasInside(Protocol):
    """A guidance that applies another one. inside: the other."""

    inside: Guidance


@runtime_checkable
class Surrounds(Protocol):
    """A guidance that changes the field of another one. guidance: the other."""

    guidance: Guidance


@runtime_checkable
class IsNetworkInput(Protocol):
    """A guidance whose scale is an input of the network. also: another one on top of it; None for none."""

    also: Guidance | None


def conditional_field(backbone: VelocityNetwork, cond: Condition) -> VelocityField:
    """The field of one network under one condition, float32."""
    cond = without_padding(cond)
    return lambda z, t: backbone(z, t.to(z.device).expand(len(z)), cond).float()


def check_unguided(backbone: VelocityNetwork, cond: Condition | None = None) -> None:
    """Raises ValueError for a network that takes the scale of guidance as an input: it would be guided twice.

    cond: may say the scale, as where both are asked for.
    """
    if takes_guidance(backbone) and (cond is None or cond.guidance is None):
        raise ValueError(
            "guidance would be applied twice: the model takes its scale as an input (model.guidance); use "
            "guidance=embedded guidance.scale=..., or both by guidance=embedded +guidance@guidance.also=cfg"
        )


def away_from(weak: VelocityField, strong: VelocityField, *, scale: float) -> VelocityField:
    """weak + scale (strong - weak)."""

    def field(z: Latent, t: Tensor) -> Latent:
        v = weak(z, t)
        return v + scale * (strong(z, t) - v)

    return field


def velocity_pair(
    backbone: VelocityNetwork, cond: Condition, null: Condition, *, batched: bool
) -> VelocityPair:
    """The conditional and the null velocity, c and u, under each condition in turn or both in one batch.

    Raises ValueError as `check_unguided` does.
    """
    check_unguided(backbone, cond)
    if not batched:
        c, u = conditional_field(backbone, cond), conditional_field(backbone, null)
        return lambda z, t: (c(z, t), u(z, t))
    both = conditional_field(backbone, Condition.join([cond, null]))

    def pair(z: Latent, t: Tensor) -> tuple[Latent, Latent]:
        c, u = both(z.repeat(2, 1, 1, 1), t).chunk(2)
        return c, u

    return pair


def without_padding(cond: Condition) -> Condition:
    """The condition without tokens that are padding in every row, which nothing attends to.

    A sampler evaluates the network many times, and captions are much shorter than their encoder's length.
    """
    if cond.tokens is None or cond.mask is None:
        return cond
    present = cond.mask.any(dim=0)
    mask = cond.mask[:, present]
    return replace(cond, tokens=cond.tokens[:, present], mask=None if bool(mask.all()) else mask)


def follows_condition_alone(guidance: Guidance) -> bool:
    """True if the field is the conditional one, c; of a guidance around others, if it is so of each of them."""
    if isinstance(guidance, HasInside):
        return follows_condition_alone(guidance.inside)
    if isinstance(guidance, Surrounds):
        return follows_condition_alone(guidance.guidance)
    if isinstance(guidance, IsNetworkInput) and guidance.also is not None:
        return False
    return guidance.scale == 1 if isinstance(guidance, HasScale) else isinstance(guidance, Unscaled)


def innermost(guidance: Guidance) -> Guidance:
    """The guidance itself, or the one `inside` it, however deep."""
    return innermost(guidance.inside) if isinstance(guidance, HasInside) else guidance


def with_innermost(guidance: Guidance, change: Callable[[Guidance], Guidance]) -> Guidance:
    """A copy of a guidance with the innermost one replaced by `change` of a copy of it; networks are shared."""
    other = copy.copy(guidance)
    if isinstance(other, HasInside):
        other.inside = with_innermost(other.inside, change)
        return other
    return change(other)


def with_scale(guidance: Guidance, scale: float) -> Guidance:
    """A copy of a guidance, or of the one `inside` another, with another scale; networks are shared.

    Raises ValueError for a guidance without a scale.
    """

    def change(other: Guidance) -> Guidance:
        if not isinstance(other, HasScale):
            raise ValueError(
                f"scales needs a guidance with a scale, and {type(other).__name__} has none; use guidance=cfg"
            )
        other.scale = check_scale(scale)
        return other

    return with_innermost(guidance, change)


def check_scale(scale: float) -> float:
    """Returns `scale`; raises ValueError below 0, and for infinity and NaN."""
    if not 0 <= scale < math.inf:
        raise ValueError(f"guidance.scale={scale} must be at least 0 and finite")
    return scale


class NoGuidance:
    """The conditional field of the network itself: v = c."""

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        return conditional_field(backbone, cond)

    def scaled(self, scale: float) -> Guidance:
        return ClassifierFree(scale=scale)


class ClassifierFree:
    """Classifier-free guidance, v = u + scale (c - u), on all channels (arXiv 2207.12598).

    scale: 1 is the plain conditional, at half the cost; 0 is the unconditional.
    batched: c and u from one evaluation of twice the batch, or from two where memory is short.
    """

    def __init__(self, *, scale: NotNegative, batched: bool = True) -> None:
        self.scale, self.batched = check_scale(scale), batched

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        if self.scale == 1:
            return conditional_field(backbone, cond)
        pair = velocity_pair(backbone, cond, null, batched=self.batched)

        def field(z: Latent, t: Tensor) -> Latent:
            c, u = pair(z, t)
            return u + self.scale * (c - u)

        return field


class EmbeddedGuidance:
    """v = v_theta(z, t, c, scale), of a network that has learned what guidance does (arXiv 2210.03142, sec. 3.1).

    It takes one evaluation, where classifier-free guidance takes two.
    scale: the input of the network; 1 is the plain conditional.
    also: another guidance on top, of the network at this scale; None for none.
    Raises ValueError for one on top that needs a second network, or a network of a certain kind.
    """

    def __init__(self, *, scale: NotNegative, also: Guidance | None = None) -> None:
        if also is not None and isinstance(innermost(also), HasGuide | ChecksNetwork):
            raise ValueError(
                f"guidance.also={type(innermost(also)).__name__} cannot be on top of guidance=embedded; use cfg or a "
                "variant of it"
            )
        self.scale, self.also = check_scale(scale), also

    def check(self, network: VelocityNetwork) -> None:
        """As of `ChecksNetwork`."""
        if not takes_guidance(network):
            raise ValueError(
                "guidance=embedded needs a model that takes the scale as an input (model.guidance); use guidance=cfg"
            )

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        """Raises ValueError for a network without such an input."""
        self.check(backbone)
        cond, null = (
            replace(each, guidance=each.pooled.new_full((len(each),), self.scale)) for each in (cond, null)
        )
        return conditional_field(backbone, cond) if self.also is None else self.also(backbone, cond, null)


class ThreeChannel:
    """Classifier-free guidance of the first three channels alone; the others are conditional.

    For comparison with the published numbers of DiT and SiT, whose code samples in this way.
    """

    def __init__(self, *, scale: NotNegative, batched: bool = True) -> None:
        self.scale, self.batched = check_scale(scale), batched

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        pair = velocity_pair(backbone, cond, null, batched=self.batched)

        def field(z: Latent, t: Tensor) -> Latent:
            c, u = pair(z, t)
            return torch.cat([u[:, :3] + self.scale * (c[:, :3] - u[:, :3]), c[:, 3:]], dim=1)

        return field


class Autoguidance:
    """Guidance by a worse network, v = weak + scale (strong - weak) (arXiv 2406.02507).

    scale: 1 is the strong network alone, and the weak one is not evaluated.
    guide: the weak network, smaller or less trained. In place of the null condition it gets the
        samples' condition from its own conditioner (`Pipeline.guide`).
    """

    def __init__(self, *, scale: NotNegative, guide: VelocityNetwork) -> None:
        self.scale, self.guide = check_scale(scale), guide

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        strong, weak = conditional_field(backbone, cond), conditional_field(self.guide, null)
        if self.scale == 1:
            return strong
        check_unguided(backbone)
        return away_from(weak, strong, scale=self.scale)


class PathDrop:
    """Guidance by the network without its middle and its condition, v = d + scale (c - d) (arXiv 2510.21986).

    d is the velocity under the null condition with the blocks of the joined path left out, which costs a few blocks in
    place of a whole evaluation.

    scale: 1 is the plain conditional.
    Raises ValueError for a network without a joined path.
    """

    def __init__(self, *, scale: NotNegative) -> None:
        self.scale = check_scale(scale)

    def check(self, network: VelocityNetwork) -> None:
        """As of `ChecksNetwork`."""
        without_path(network)

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        strong, weak = conditional_field(backbone, cond), conditional_field(without_path(backbone), null)
        if self.scale == 1:
            return strong
        check_unguided(backbone)
        return away_from(weak, strong, scale=self.scale)


class GuidanceInterval:
    """Another guidance where low <= t <= high, the plain conditional elsewhere (arXiv 2404.07724).

    low, high: times. A noise level sigma of that paper, with unit data, is t = sigma / (1 + sigma).
    Raises ValueError unless 0 <= low < high <= 1.
    """

    def __init__(self, *, inside: Guidance, low: Fraction, high: Fraction) -> None:
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance.low={low}, high={high} must be an interval within 0 and 1")
        self.inside, self.low, self.high = inside, low, high

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        guided, plain = self.inside(backbone, cond, null), conditional_field(backbone, cond)
        if takes_guidance(backbone):
            plain = EmbeddedGuidance(scale=1.0)(backbone, cond, null)
        return lambda z, t: guided(z, t) if self.low <= t <= self.high else plain(z, t)
