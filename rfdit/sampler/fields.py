"""Fields made of a guided one: with a part known, between two conditions, observed.

Each is a `Guidance` around another: it changes the velocity field after guidance, so it works with
every guidance and every solver.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.protocols import Backbone
from rfdit.sampler.guidance import Guidance
from rfdit.sampler.solvers import VelocityField


@dataclass(frozen=True, kw_only=True)
class KnownRegion:
    """Where the data is known, the velocity is known too: z1 - z0, whatever the network says.

    So this part goes straight from its noise to the data, in steps of any solver, and the network sees
    it at every time as it saw training data at that time.
    known: True where z0 is known. z0: the data. z1: the noise that sampling starts from.
    """

    guidance: Guidance
    known: Bool[Tensor, "#b 1 h w"]
    z0: Latent
    z1: Latent

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        field, straight = self.guidance(backbone, cond, null), self.z1 - self.z0
        return lambda z, t: torch.where(self.known, straight, field(z, t).float())


@dataclass(frozen=True, kw_only=True)
class Between:
    """The field between those of two conditions: (1 - weight) v(z, t | cond) + weight v(z, t | other).

    other_null: what guidance moves away from under `other`.

    Velocities are mixed and not text features, whose tokens do not belong together one by one. At
    weight 0 and 1 it is exactly the one and the other field.
    """

    guidance: Guidance
    other: Condition
    other_null: Condition
    weight: Float[Tensor, "b"]

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        here = self.guidance(backbone, cond, null)
        there = self.guidance(backbone, self.other, self.other_null)
        weight = self.weight.view(-1, 1, 1, 1)
        return lambda z, t: torch.lerp(here(z, t).float(), there(z, t).float(), weight)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Shows every evaluation, as (z_t, v, t)."""

    guidance: Guidance
    watch: Callable[[Latent, Latent, Tensor], None]

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        field = self.guidance(backbone, cond, null)

        def observed(z: Latent, t: Tensor) -> Latent:
            v = field(z, t).float()
            self.watch(z, v, t)
            return v

        return observed


def slerp(a: Latent, b: Latent, weight: Float[Tensor, "b"]) -> Latent:
    """From a (weight 0) to b (weight 1) along the arc between them, sample by sample.

    The straight line would pass through latents that are too short to be noise: in many dimensions
    normal noise lies close to a sphere (White, arXiv 1609.04468).
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1)
    angle, weight = cosine.acos()[:, None], weight.double()[:, None]
    arc = (torch.sin((1 - weight) * angle) * flat_a + torch.sin(weight * angle) * flat_b) / angle.sin()
    straight = torch.lerp(flat_a, flat_b, weight)
    # On (almost) one line through zero there is no arc to go along.
    return torch.where(angle.sin() < 1e-6, straight, arc).view_as(a).to(a.dtype)
