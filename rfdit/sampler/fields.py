"""Velocity fields derived from a guided one: a known region, two conditions, an observer.

Each is a `Guidance` around another: it changes the velocity field after guidance, so it works with
every guidance and every solver.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.protocols import VelocityNetwork
from rfdit.sampler.guidance import Guidance
from rfdit.sampler.solvers import VelocityField


@dataclass(frozen=True, kw_only=True)
class KnownRegion:
    """Inpainting: where the data is known, the velocity is z1 - z0 in place of the network's.

    The known region moves straight from its noise to the data, in steps of any solver, and at every time
    the network sees it as it saw training data at that time.

    known: True where z0 is known. z0: the data. z1: the noise that sampling starts from.
    """

    guidance: Guidance
    known: Bool[Tensor, "#b 1 h w"]
    z0: Latent
    z1: Latent

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        field, straight = self.guidance(backbone, cond, null), self.z1 - self.z0
        return lambda z, t: torch.where(self.known, straight, field(z, t).float())


@dataclass(frozen=True, kw_only=True)
class Between:
    """Interpolates the fields of two conditions: (1 - weight) v(z, t | cond) + weight v(z, t | other).

    Velocities are mixed rather than text features, whose tokens do not correspond one to one. At weight 0
    it is exactly the first field, at weight 1 exactly the second.

    other_null: the condition that guidance moves away from under `other`.
    """

    guidance: Guidance
    other: Condition
    other_null: Condition
    weight: Float[Tensor, "b"]

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        here = self.guidance(backbone, cond, null)
        there = self.guidance(backbone, self.other, self.other_null)
        weight = self.weight.view(-1, 1, 1, 1)
        return lambda z, t: torch.lerp(here(z, t).float(), there(z, t).float(), weight)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Calls `watch(z_t, v, t)` with every evaluation."""

    guidance: Guidance
    watch: Callable[[Latent, Latent, Tensor], None]

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        field = self.guidance(backbone, cond, null)

        def observed(z: Latent, t: Tensor) -> Latent:
            v = field(z, t).float()
            self.watch(z, v, t)
            return v

        return observed


def slerp(a: Latent, b: Latent, weight: Float[Tensor, "b"]) -> Latent:
    """Spherical interpolation from a (weight 0) to b (weight 1), sample by sample.

    sin((1 - w) phi) / sin(phi) a + sin(w phi) / sin(phi) b, with the angle phi between a and b. The
    straight line would pass through latents that are too short to be noise: in many dimensions, normal
    noise lies close to a sphere (White, arXiv 1609.04468).
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1)
    angle, weight = cosine.acos()[:, None], weight.double()[:, None]
    arc = (torch.sin((1 - weight) * angle) * flat_a + torch.sin(weight * angle) * flat_b) / angle.sin()
    straight = torch.lerp(flat_a, flat_b, weight)
    # (Almost) parallel latents have no arc between them.
    return torch.where(angle.sin() < 1e-6, straight, arc).view_as(a).to(a.dtype)
