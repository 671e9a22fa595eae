"""The autoencoders of diffusers: those of Stable Diffusion, Flux, Qwen-Image, Wan and others, and RAE."""

from collections.abc import Sequence

import torch

from rfdit.autoencoder.contract import Moments
from rfdit.autoencoder.declared import DeclaredLatents
from rfdit.autoencoder.frozen_halves import FrozenHalves, check_divisible, check_sides
from rfdit.autoencoder.kinds import KINDS
from rfdit.autoencoder.latent_cache import LatentCache
from rfdit.autoencoder.pretrained import load_pretrained
from rfdit.batch import Images, Latent
from rfdit.limits import Count, Finite, Index, Positive
from rfdit.randomness import SampleGenerator


class DiffusersAutoencoder:
    """A pretrained autoencoder, frozen, of the class that its `config.json` names.

    AutoencoderKL encodes an image as a distribution (Rombach et al., arXiv 2112.10752, sec. 3.1), and so do those of
    Flux.2, Qwen-Image and Wan; AutoencoderTiny (github.com/madebyollin/taesd), AutoencoderDC (Chen et al., arXiv
    2410.10733) and AutoencoderRAE (Zheng et al., arXiv 2510.11690) are deterministic. `KINDS` has the classes.

    source, subfolder: a folder or hub name, and the autoencoder's folder inside it.
    name: name of the latent space, for the contract; presets that share weights share the name.
    latent_channels, downsampling: must be those of the weights' own config.
    scale, shift: latents are `(raw - shift) * scale`, with numbers that must be those of the weights' config. TAESD
        is trained on latents that are already scaled, hence 1 and 0.
    mean, std: in place of them, the mean and the standard deviation of each channel, `(raw - mean) / std`, which
        must be those of the weights' config if it has any.
    statistics: `settings` for these; `weights` for the mean and std that come with the weights: in their config, as
        the running statistics of a batch norm (Flux.2), or for each channel and position (RAE).
    dtype, slice_size: see `FrozenHalves`. cache_size: see `LatentCache`.

    Raises OSError without weights at `source`, ValueError where they disagree with the settings.
    """

    def __init__(
        self,
        *,
        source: str,
        name: str,
        latent_channels: Count,
        downsampling: Count,
        scale: Positive = 1.0,
        shift: Finite = 0.0,
        mean: Sequence[Finite] | None = None,
        std: Sequence[Positive] | None = None,
        statistics: str = "settings",
        subfolder: str | None = None,
        dtype: str = "auto",
        slice_size: Count | None = None,
        cache_size: Index = 0,
    ) -> None:
        self.latent_channels, self.downsampling = latent_channels, downsampling
        declared = DeclaredLatents(
            name=name,
            latent_channels=latent_channels,
            downsampling=downsampling,
            scale=scale,
            shift=shift,
            mean=mean,
            std=std,
            statistics=statistics,
        )
        module = load_pretrained(source, subfolder=subfolder)
        self._kind = KINDS[type(module).__name__]
        about = self._kind.about(module)
        self.contract, self._sides = declared.with_weights(about, source=source), about.sides
        self._halves = FrozenHalves(module, dtype=dtype, slice_size=slice_size)
        self._cache = LatentCache(cache_size)

    def moments(self, images: Images) -> Moments:
        """Images in [-1, 1] -> means and log-variances (b, 2c, h, w), or raw latents (b, c, h, w), float32."""
        check_divisible(images, self.downsampling)
        check_sides(images, self._sides)
        return self._cache(lambda images: self._halves.run(self._kind.encode, images), images)

    def from_moments(self, moments: Moments, *, generator: SampleGenerator | None = None) -> Latent:
        """Moments -> `(mean or sample - shift) * scale`, float32.

        generator: draws each sample's latent from its distribution; without one, or where encoding is
            deterministic, it is the mean.
        """
        if moments.shape[1] == self.latent_channels:
            return self.contract.normalise(moments.float())
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
        return self._halves.run(self._kind.decode, raw).clamp(-1, 1)

    def weights_digest(self) -> str:
        """SHA-256 of the weights as they were loaded."""
        return self._halves.frozen.weights_digest()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype to compute in on a device."""
        return self._halves.frozen.dtype_on(device)
