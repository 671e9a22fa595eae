"""The rectified-flow convention, stated once: t = 0 is data, t = 1 is noise.

z_t = z0 + t (z1 - z0), v = dz/dt = z1 - z0. Sampling integrates from t = 1 down to t = 0, so a
step of size dt > 0 is z <- z - dt v. (Liu et al., arXiv 2209.03003; Esser et al., arXiv 2403.03206)
"""

from torch import Tensor

from rfdit.batch import Latent, Time


def per_sample(t: Time, like: Tensor) -> Tensor:
    """Times of shape (b,) reshaped to (b, 1, ..., 1), so that they multiply `like` sample by sample."""
    return t.view(-1, *[1] * (like.ndim - 1))


def interpolate(z0: Latent, z1: Latent, t: Time) -> Latent:
    """z_t = z0 + t (z1 - z0), the point at time t on the straight path from data z0 to noise z1."""
    return z0 + per_sample(t, z0) * (z1 - z0)


def velocity(z0: Latent, z1: Latent) -> Latent:
    """v = dz_t/dt = z1 - z0, the regression target."""
    return z1 - z0


def data_from_velocity(z_t: Latent, v: Latent, t: Time) -> Latent:
    """The data that a velocity implies, z0 = z_t - t v."""
    return z_t - per_sample(t, z_t) * v


def noise_from_velocity(z_t: Latent, v: Latent, t: Time) -> Latent:
    """The noise that a velocity implies, z1 = z_t + (1 - t) v."""
    return z_t + (1 - per_sample(t, z_t)) * v


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t): s > 1 moves times towards noise (arXiv 2403.03206, eq. 23).

    Training and sampling both use this function; s = 1 is the identity.
    """
    return shift * t / (1 + (shift - 1) * t)
