"""Deep-compression autoencoders: 32 pixels to a latent pixel."""

import torch

from rfdit.autoencoder.contract import LatentContract, Moments
from rfdit.autoencoder.frozen_halves import FrozenHalves, check_divisible
from rfdit.autoencoder.pretrained import check_declared, load_pretrained
from rfdit.batch import Images, Latent
from rfdit.randomness import SampleGenerator


class DCAutoencoder:
    """diffusers' AutoencoderDC, frozen (Chen et al., arXiv 2410.10733). Deterministic.

    source, subfolder: a folder or hub name, and where inside it the autoencoder lies.
    name: of the latent space, for the contract.
    latent_channels, downsampling, scale: must be what the weights' own config says; it knows no
        shift.
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
        subfolder: str | None = None,
        dtype: str = "auto",
        slice_size: int | None = None,
    ) -> None:
        from diffusers import AutoencoderDC

        module = load_pretrained(AutoencoderDC, source, subfolder=subfolder)
        self.latent_channels = latent_channels
        self.downsampling = downsampling
        self.contract = LatentContract(name, latent_channels, downsampling, scale, shift=0.0)
        found = LatentContract(
            name,
            channels=module.config.latent_channels,
            downsampling=2 ** (len(module.config.encoder_block_out_channels) - 1),
            scale=module.config.scaling_factor,
            shift=0.0,
        )
        check_declared(source, declared=self.contract, found=found)
        self._halves = FrozenHalves(module, dtype=dtype, slice_size=slice_size)

    def moments(self, images: Images) -> Moments:
        """Images in [-1, 1] -> raw latents, float32."""
        check_divisible(images, self.downsampling)
        return self._halves.run(lambda ae, x: ae.encode(x).latent, images)

    def from_moments(self, moments: Moments, *, generator: SampleGenerator | None = None) -> Latent:
        """Raw latents -> normalised ones, float32; there is no posterior to draw from."""
        return self.contract.normalise(moments.float())

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
