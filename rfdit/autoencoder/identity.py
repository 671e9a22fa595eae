"""Pixels as latents."""

from rfdit.autoencoder.contract import LatentContract, Moments
from rfdit.batch import Images, Latent
from rfdit.limits import Count
from rfdit.randomness import SampleGenerator


class IdentityAutoencoder:
    """No autoencoder: the latent is the image itself, in [-1, 1].

    latent_channels, downsampling: 3 and 1, or ValueError; declared since other config nodes read them.
    """

    def __init__(self, *, latent_channels: Count = 3, downsampling: Count = 1) -> None:
        if (latent_channels, downsampling) != (3, 1):
            raise ValueError(
                f"autoencoder.latent_channels={latent_channels}, autoencoder.downsampling={downsampling}: "
                "pixels have 3 channels and a downsampling of 1"
            )
        self.latent_channels = latent_channels
        self.downsampling = downsampling
        self.contract = LatentContract("identity", latent_channels, downsampling, scale=1.0, shift=0.0)

    def moments(self, images: Images) -> Moments:
        """The images, as float32."""
        return images.detach().float()

    def from_moments(self, moments: Moments, *, generator: SampleGenerator | None = None) -> Latent:
        """The images as float32; nothing is drawn."""
        return moments.float()

    def decode(self, latents: Latent) -> Images:
        """The latents clipped to [-1, 1]."""
        return latents.detach().float().clamp(-1, 1)
