"""The variational autoencoders of Stable Diffusion, SDXL, SD3 and Flux."""

import torch

from rfdit.autoencoder.contract import LatentContract, Moments
from rfdit.autoencoder.frozen_halves import FrozenHalves, check_divisible
from rfdit.autoencoder.pretrained import check_declared, load_pretrained
from rfdit.batch import Images, Latent
from rfdit.randomness import SampleGenerator


class KLAutoencoder:
    """diffusers' AutoencoderKL, frozen (Rombach et al., arXiv 2112.10752, sec. 3.1).

    source, subfolder: a folder or hub name, and where inside it the autoencoder lies.
    name: of the latent space, for the contract; presets that share weights share the name.
    latent_channels, downsampling, scale, shift: must be what the weights' own config says.
    dtype, slice_size: see `FrozenHalves`.

    Raises OSError without weights at `source`, ValueError where they disagree with the settings.
    """

    def __init__(
        self,
        *,
        source: str,
        name: str,
        latent_channels: int,
        downsampling: int,
        scale: float,
        shift: float = 0.0,
        subfolder: str | None = None,
        dtype: str = "auto",
        slice_size: int | None = None,
    ) -> None:
        from diffusers import AutoencoderKL

        module = load_pretrained(AutoencoderKL, source, subfolder=subfolder)
        self.latent_channels = latent_channels
        self.downsampling = downsampling
        self.contract = LatentContract(name, latent_channels, downsampling, scale, shift)
        found = LatentContract(
            name,
            channels=module.config.latent_channels,
            downsampling=2 ** (len(module.config.block_out_channels) - 1),
            scale=module.config.scaling_factor,
            shift=module.config.shift_factor or 0.0,
        )
        check_declared(source, declared=self.contract, found=found)
        self._halves = FrozenHalves(module, dtype=dtype, slice_size=slice_size)

    def moments(self, images: Images) -> Moments:
        """Images in [-1, 1] -> their posteriors' means and log-variances, 2c channels, float32."""
        check_divisible(images, self.downsampling)
        return self._halves.run(lambda ae, x: ae.encode(x).latent_dist.parameters, images)

    def from_moments(self, moments: Moments, *, generator: SampleGenerator | None = None) -> Latent:
        """Means and log-variances -> `(mean or sample - shift) * scale`, float32.

        generator: draws each sample's latent from its posterior; without one it is the mean.
        """
        mean, log_variance = moments.float().chunk(2, dim=1)  # (b, c, h, w) each
        if generator is None:
            return self.contract.normalise(mean)
        noise = generator.normal(*mean.shape[1:]).to(mean.device)
        # diffusers' bounds: beyond them exp overflows.
        deviation = torch.exp(0.5 * log_variance.clamp(-30, 20))
        return self.contract.normalise(mean + deviation * noise)

    def decode(self, latents: Latent) -> Images:
        """Normalised latents -> images clipped to [-1, 1], float32."""
        raw = self.contract.denormalise(latents.float())
        return self._halves.run(lambda ae, z: ae.decode(z).sample, raw).clamp(-1, 1)

    def weights_digest(self) -> str:
        """SHA-256 of the weights as they were loaded."""
        return self._halves.weights_digest()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The arithmetic on a device."""
        return self._halves.dtype_on(device)
