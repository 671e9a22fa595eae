"""The loss by which runs are compared, whatever they are trained with.

Training losses of different time densities, shifts, weightings or objectives do not compare. The error of the
velocity at fixed times and with fixed noise does (arXiv 2403.03206, sec. 5.1 validates so).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit import flow
from rfdit.batch import Condition, Latent
from rfdit.protocols import VelocityNetwork
from rfdit.randomness import SampleGenerator

# Midpoints of eight equal parts of (0, 1), so that the mean over them is the midpoint rule for the loss's integral.
TIMES = tuple((2 * k + 1) / 16 for k in range(8))


def losses_at_times(
    network: VelocityNetwork, z0: Latent, cond: Condition, *, generator: SampleGenerator
) -> Float[Tensor, "b times"]:
    """||v_theta(z_t, t, c) - (z1 - z0)||^2, the mean over latent dimensions, at each of `TIMES`.

    z0: (b, c, h, w) clean latents. cond: their conditions, none of them dropped.
    generator: the noise, keyed by sample; a sample has the same noise at all times.
    """
    z1 = generator.fork("noise").normal(*z0.shape[1:])
    target = flow.velocity(z0, z1)
    losses = []
    for time in TIMES:
        t = torch.full((len(z0),), time, device=z0.device)
        v = network(flow.interpolate(z0, z1, t), t, cond)
        losses.append((v.float() - target).square().flatten(1).mean(1))
    return torch.stack(losses, dim=1)
