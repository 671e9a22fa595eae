"""The straightness of a flow's paths (arXiv 2209.03003, eq. 4)."""

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.batch import Latent
from rfdit.sampler.solvers import VelocityField


@torch.no_grad()
def straightness(field: VelocityField, z1: Latent, *, steps: int) -> Float[Tensor, "b"]:
    """S = int_0^1 |(z1 - z0) - v(z_t, t)|^2 dt along the paths of Euler's method, the mean over latent dimensions.

    It is zero exactly where the velocity is constant along each path, so that one step gives what many do; the
    straighter the paths, the smaller it is. As z1 - z0 is the mean of the velocity, S is its variance over t.

    z1: (b, c, h, w) noise. steps: of equal size; with one step every path is straight.
    """
    z, mean, squares = z1.float(), torch.zeros_like(z1), torch.zeros_like(z1)
    for k in range(steps):  # Welford's algorithm, which is numerically stable
        v = field(z, torch.tensor(1 - k / steps)).float()
        apart = v - mean
        mean = mean + apart / (k + 1)
        squares = squares + apart * (v - mean)
        z = z - v / steps
    return squares.flatten(1).mean(1) / steps
