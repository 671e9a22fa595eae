"""Classifier-free guidance with its update corrected, against what large scales spoil."""

import torch
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.flow import per_sample
from rfdit.protocols import Backbone
from rfdit.sampler.guidance import check_scale, velocity_pair
from rfdit.sampler.solvers import VelocityField

TINY = torch.finfo(torch.float32).tiny  # so that an untrained network's zeros divide to zeros


def dot(a: Latent, b: Latent) -> Tensor:
    """Each sample's inner product, of shape (b, 1, 1, 1)."""
    return per_sample((a * b).flatten(1).sum(1), a)


class CFGRescale:
    """Classifier-free guidance g, brought back to the spread of c (arXiv 2305.08891, sec. 3.4).

    v = rescale g std(c) / std(g) + (1 - rescale) g, with each sample's standard deviation. As in the
    paper it is the network's output that is rescaled: here the velocity, not the predicted z0.
    """

    def __init__(self, *, scale: float, rescale: float = 0.7, batched: bool = True) -> None:
        if not 0 <= rescale <= 1:
            raise ValueError(f"guidance.rescale={rescale} must lie between 0 and 1")
        self.scale, self.rescale, self.batched = check_scale(scale), rescale, batched

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        pair = velocity_pair(backbone, cond, null, batched=self.batched)

        def field(z: Latent, t: Tensor) -> Latent:
            c, u = pair(z, t)
            g = u + self.scale * (c - u)
            ratio = per_sample(c.flatten(1).std(1) / g.flatten(1).std(1).clamp(min=TINY), g)
            return self.rescale * ratio * g + (1 - self.rescale) * g

        return field


class AdaptiveProjected:
    """Guidance mostly across the prediction, not along it, of limited length (arXiv 2410.02416).

    With d = D_c - D_u, the difference of the predicted z0: d gets momentum, is shortened to at most
    norm_threshold, and eta of its part along D_c is kept. D = D_c + (scale - 1) d.

    eta: 1 keeps all of it, as classifier-free guidance does; 0 is the paper's choice.
    norm_threshold: of the Euclidean norm over a sample's latent, so it grows with that; None for no limit.
    momentum: d <- d + momentum (the d before), over a call's evaluations; negative in the paper.
    """

    def __init__(
        self,
        *,
        scale: float,
        eta: float = 0.0,
        norm_threshold: float | None = None,
        momentum: float = 0.0,
        batched: bool = True,
    ) -> None:
        if norm_threshold is not None and norm_threshold <= 0:
            raise ValueError(f"guidance.norm_threshold={norm_threshold} must be positive, or null for none")
        if not -1 < momentum < 1:
            raise ValueError(f"guidance.momentum={momentum} must lie between -1 and 1")
        self.scale, self.eta, self.norm_threshold = check_scale(scale), eta, norm_threshold
        self.momentum, self.batched = momentum, batched

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        pair = velocity_pair(backbone, cond, null, batched=self.batched)
        before: Latent | None = None

        def field(z: Latent, t: Tensor) -> Latent:
            nonlocal before
            c, u = pair(z, t)
            d = t * (u - c)
            if before is not None:
                d = d + self.momentum * before
            before = d
            if t == 0:  # z is z0: nothing is predicted, so nothing guided
                return c
            return c - (self.scale - 1) / t * self._project(self._limit(d), z - t * c)

        return field

    def _limit(self, d: Latent) -> Latent:
        if self.norm_threshold is None:
            return d
        return d * (self.norm_threshold / dot(d, d).sqrt()).clamp(max=1)

    def _project(self, d: Latent, onto: Latent) -> Latent:
        """d with `eta` of its part along `onto`."""
        along = dot(d, onto) / dot(onto, onto).clamp(min=TINY) * onto
        return d - along + self.eta * along


class CFGZeroStar:
    """Classifier-free guidance from the best multiple of u, after a pause (arXiv 2503.18886).

    v = a u + scale (c - a u) with a = <c, u> / |u|^2, the multiple nearest to c.

    zero_init: the velocity is 0 for t > 1 - zero_init. The paper leaves out the first of the steps,
        where a network that is not trained to its end errs most.
    """

    def __init__(self, *, scale: float, zero_init: float = 0.04, batched: bool = True) -> None:
        if not 0 <= zero_init < 1:
            raise ValueError(f"guidance.zero_init={zero_init} must be at least 0 and less than 1")
        self.scale, self.zero_init, self.batched = check_scale(scale), zero_init, batched

    def __call__(self, backbone: Backbone, cond: Condition, null: Condition) -> VelocityField:
        pair = velocity_pair(backbone, cond, null, batched=self.batched)

        def field(z: Latent, t: Tensor) -> Latent:
            if t > 1 - self.zero_init:
                return torch.zeros_like(z)
            c, u = pair(z, t)
            u = dot(c, u) / dot(u, u).clamp(min=TINY) * u
            return u + self.scale * (c - u)

        return field
