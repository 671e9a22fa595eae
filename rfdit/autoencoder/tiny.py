"""TAESD and its relatives: autoencoders of a few million parameters that know others' latent spaces."""

import torch

from rfdit.autoencoder.contract import LatentContract, Moments
from rfdit.autoencoder.frozen_halves import FrozenHalves, check_divisible
from rfdit.autoencoder.latent_cache import LatentCache
from rfdit.autoencoder.pretrained import check_declared, load_pretrained
from rfdit.batch import Images, Latent
from rfdit.randomness import SampleGenerator


class TinyAutoencoder:
    """diffusers' AutoencoderTiny, frozen (github.com/madebyollin/taesd). Deterministic.

    source, subfolder: a folder or hub name, and where inside it the autoencoder lies.
    name: of the latent space, for the contract.
    latent_channels, downsampling, scale, shift: must be what the weights' own config says. TAESD is
        trained on latents that are already scaled, hence 1 and 0.
    dtype, slice_size: see `FrozenHalves`. cache_size: see `LatentCache`.

    Raises OSError without weights at `source`, ValueError where they disagree with the settings.
    """

    def __init__(
        self,
        *,
        source: str,
        name: str,
        latent_channels: int,
        downsampling: int,
        scale: float = 1.0,
        shift: float = 0.0,
        subfolder: str | None = None,
        dtype: str = "auto",
        slice_size: int | None = None,
        cache_size: int = 0,
    ) -> None:
        from diffusers import AutoencoderTiny

        module = load_pretrained(AutoencoderTiny, source, subfolder=subfolder)
        self.latent_channels = latent_channels
        self.downsampling = downsampling
        self.contract = LatentContract(name, latent_channels, downsampling, scale, shift)
        found = LatentContract(
            name,
            channels=module.config.latent_channels,
            downsampling=2 ** (len(module.config.encoder_block_out_channels) - 1),
            scale=module.config.scaling_factor,
            shift=module.config.shift_factor,
        )
        check_declared(source, declared=self.contract, found=found)
        self._halves = FrozenHalves(module, dtype=dtype, slice_size=slice_size)
        self._cache = LatentCache(cache_size)

    def moments(self, images: Images) -> Moments:
        """Images in [-1, 1] -> raw latents, float32."""
        check_divisible(images, self.downsampling)
        return self._cache(self._encode, images)

    def _encode(self, images: Images) -> Moments:
        return self._halves.run(lambda ae, x: ae.encode(x).latents, images)

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
