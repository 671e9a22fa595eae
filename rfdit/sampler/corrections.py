"""Variants of classifier-free guidance against the artefacts of large scales.

c and u are the conditional and the null velocity, and g = u + scale (c - u).
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.flow import per_sample
from rfdit.limits import BelowOne, Finite, Fraction, Limit, NotNegative, Positive
from rfdit.protocols import VelocityNetwork
from rfdit.sampler.guidance import check_scale, velocity_pair
from rfdit.sampler.solvers import VelocityField

TINY = torch.finfo(torch.float32).tiny  # so that the zeros of an untrained network divide to zeros


def dot(a: Latent, b: Latent) -> Tensor:
    """Inner products of samples, of shape (b, 1, 1, 1)."""
    return per_sample((a * b).flatten(1).sum(1), a)


class CFGRescale:
    """Classifier-free guidance with the standard deviation of c (arXiv 2305.08891, sec. 3.4).

    v = rescale g std(c) / std(g) + (1 - rescale) g, with standard deviations over each sample. As in
    the paper, the output of the network is rescaled: here the velocity, not the predicted z0.

    Raises ValueError for a rescale outside [0, 1].
    """

    def __init__(self, *, scale: NotNegative, rescale: Fraction = 0.7, batched: bool = True) -> None:
        if not 0 <= rescale <= 1:
            raise ValueError(f"guidance.rescale={rescale} must lie between 0 and 1")
        self.scale, self.rescale, self.batched = check_scale(scale), rescale, batched

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        pair = velocity_pair(backbone, cond, null, batched=self.batched)

        def field(z: Latent, t: Tensor) -> Latent:
            c, u = pair(z, t)
            g = u + self.scale * (c - u)
            ratio = per_sample(c.flatten(1).std(1) / g.flatten(1).std(1).clamp(min=TINY), g)
            return self.rescale * ratio * g + (1 - self.rescale) * g

        return field


Momentum = Annotated[float, Limit("between -1 and 1", lambda x: -1 < x < 1)]


class AdaptiveProjected:
    """Adaptive projected guidance, APG: mostly orthogonal to the prediction, of limited length (arXiv 2410.02416).

    With d = D_c - D_u, the difference of the predicted z0: d gets momentum, is shortened to at most
    norm_threshold, and eta of its component along D_c is kept. D = D_c + (scale - 1) d.

    eta: 1 keeps the whole component, as classifier-free guidance does; 0 is the paper's choice.
    norm_threshold: limit of the Euclidean norm over a sample's latent, which grows with its size; None
        for no limit.
    momentum: d <- d + momentum d_previous, over the evaluations of a call; negative in the paper.
    """

    def __init__(
        self,
        *,
        scale: NotNegative,
        eta: Finite = 0.0,
        norm_threshold: Positive | None = None,
        momentum: Momentum = 0.0,
        batched: bool = True,
    ) -> None:
        if norm_threshold is not None and not 0 < norm_threshold < math.inf:
            raise ValueError(f"guidance.norm_threshold={norm_threshold} must be positive, or null for none")
        if not -1 < momentum < 1:
            raise ValueError(f"guidance.momentum={momentum} must lie between -1 and 1")
        self.scale, self.eta, self.norm_threshold = check_scale(scale), eta, norm_threshold
        self.momentum, self.batched = momentum, batched

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        pair = velocity_pair(backbone, cond, null, batched=self.batched)
        previous: Latent | None = None

        def field(z: Latent, t: Tensor) -> Latent:
            nonlocal previous
            c, u = pair(z, t)
            d = t * (u - c)
            if previous is not None:
                d = d + self.momentum * previous
            previous = d
            if t == 0:  # z is z0: nothing is predicted, so there is nothing to guide
                return c
            return c - (self.scale - 1) / t * self._project(self._limit(d), z - t * c)

        return field

    def _limit(self, d: Latent) -> Latent:
        if self.norm_threshold is None:
            return d
        return d * (self.norm_threshold / dot(d, d).sqrt()).clamp(max=1)

    def _project(self, d: Latent, onto: Latent) -> Latent:
        """d with `eta` of its component along `onto`."""
        along = dot(d, onto) / dot(onto, onto).clamp(min=TINY) * onto
        return d - along + self.eta * along


class CFGZeroStar:
    """CFG-Zero*: classifier-free guidance from the best multiple of u, zero at first (arXiv 2503.18886).

    v = a u + scale (c - a u) with a = <c, u> / |u|^2, the multiple of u nearest to c.

    zero_init: the velocity is 0 for t > 1 - zero_init. The paper skips the first of the steps, where an
        undertrained network errs most.
    """

    def __init__(self, *, scale: NotNegative, zero_init: BelowOne = 0.04, batched: bool = True) -> None:
        if not 0 <= zero_init < 1:
            raise ValueError(f"guidance.zero_init={zero_init} must be at least 0 and less than 1")
        self.scale, self.zero_init, self.batched = check_scale(scale), zero_init, batched

    def __call__(self, backbone: VelocityNetwork, cond: Condition, null: Condition) -> VelocityField:
        pair = velocity_pair(backbone, cond, null, batched=self.batched)

        def field(z: Latent, t: Tensor) -> Latent:
            if t > 1 - self.zero_init:
                return torch.zeros_like(z)
            c, u = pair(z, t)
            u = dot(c, u) / dot(u, u).clamp(min=TINY) * u
            return u + self.scale * (c - u)

        return field
