"""The differences between the autoencoders of diffusers: inputs, outputs, and statistics of their latents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F

from rfdit.autoencoder.contract import Moments
from rfdit.autoencoder.statistics import Published
from rfdit.batch import Images, Latent


@dataclass(frozen=True)
class About:
    """What the weights of an autoencoder say about their latents.

    channels, downsampling: as in `LatentContract`.
    scale, shift: one number for all latents; None where there is none.
    mean, std: of latents, per channel, or per channel and position; None where they are not known.
    sides: (height, width) of the only images that it takes; None for any.
    """

    channels: int
    downsampling: int
    scale: float | None = None
    shift: float | None = None
    mean: Published | None = None
    std: Published | None = None
    sides: tuple[int, int] | None = None


class Kind(Protocol):
    """The autoencoders of one or several classes of diffusers."""

    def about(self, module: Any) -> About:
        """What its weights and their config say about its latents; called once, before the module is used."""
        ...

    def encode(self, module: Any, images: Images) -> Moments:
        """Images in [-1, 1] -> means and log-variances (b, 2c, h, w), or raw latents (b, c, h, w)."""
        ...

    def decode(self, module: Any, raw: Latent) -> Images:
        """Raw latents -> images in [-1, 1]."""
        ...


class ImageKind:
    """AutoencoderKL, AutoencoderTiny and AutoencoderDC, which take and give images."""

    def about(self, module: Any) -> About:
        config = module.config
        stages = config.get("encoder_block_out_channels") or config["block_out_channels"]
        return About(
            channels=config["latent_channels"],
            downsampling=2 ** (len(stages) - 1),
            scale=config["scaling_factor"],
            shift=config.get("shift_factor") or 0.0,
            mean=config.get("latents_mean"),
            std=config.get("latents_std"),
        )

    def encode(self, module: Any, images: Images) -> Moments:
        encoded = module.encode(images)
        if hasattr(encoded, "latent_dist"):
            return encoded.latent_dist.parameters
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent

    def decode(self, module: Any, raw: Latent) -> Images:
        return module.decode(raw).sample


class PatchKind:
    """AutoencoderKLFlux2, whose latents' patches of 2 x 2 are channels before they are normalised.

    Its normalisation is the running mean and variance of a batch norm over these 4c channels.
    """

    side = 2

    def about(self, module: Any) -> About:
        stages, norm = module.config["block_out_channels"], module.bn
        return About(
            channels=module.config["latent_channels"] * self.side**2,
            downsampling=2 ** (len(stages) - 1) * self.side,
            mean=norm.running_mean,
            std=(norm.running_var.double() + norm.eps).sqrt(),
        )

    def encode(self, module: Any, images: Images) -> Moments:
        # Channels are the outer axis of the result, so that its first half is that of the means again.
        return F.pixel_unshuffle(module.encode(images).latent_dist.parameters, self.side)

    def decode(self, module: Any, raw: Latent) -> Images:
        return module.decode(F.pixel_shuffle(raw, self.side)).sample


class ClipKind:
    """AutoencoderKLQwenImage and AutoencoderKLWan, of clips, of which an image is one frame."""

    def about(self, module: Any) -> About:
        config = module.config
        return About(
            channels=config["z_dim"],
            downsampling=config.get("scale_factor_spatial") or 2 ** len(config["temperal_downsample"]),
            mean=config["latents_mean"],
            std=config["latents_std"],
        )

    def encode(self, module: Any, images: Images) -> Moments:
        return module.encode(images[:, :, None]).latent_dist.parameters[:, :, 0]

    def decode(self, module: Any, raw: Latent) -> Images:
        return module.decode(raw[:, :, None]).sample[:, :, 0]


class RepresentationKind:
    """AutoencoderRAE, whose latents are the tokens of a frozen vision encoder (arXiv 2510.11690).

    It takes images of one size in [0, 1], and normalises latents itself. Its statistics are taken out of it, so that
    they are the contract's, in float32 whatever it computes in.
    """

    def about(self, module: Any) -> About:
        config = module.config
        mean, std = module._latents_mean.clone(), module._latents_std.double() + NOISE
        module._latents_mean.zero_()
        module._latents_std.fill_(1 - NOISE)
        scale = config.get("scaling_factor") or 1.0
        return About(
            channels=config["encoder_hidden_size"],
            downsampling=config["patch_size"],
            mean=mean,
            std=std / scale,
            sides=(module.decoder_image_size,) * 2,
        )

    def encode(self, module: Any, images: Images) -> Moments:
        scale = module.config.get("scaling_factor") or 1.0
        return module.encode((images + 1) / 2).latent / scale

    def decode(self, module: Any, raw: Latent) -> Images:
        scale = module.config.get("scaling_factor") or 1.0
        return module.decode(raw.contiguous() * scale).sample * 2 - 1


NOISE = 1e-5  # which AutoencoderRAE adds to standard deviations
KINDS: Mapping[str, Kind] = {
    "AutoencoderKL": ImageKind(),
    "AutoencoderTiny": ImageKind(),
    "AutoencoderDC": ImageKind(),
    "AutoencoderKLFlux2": PatchKind(),
    "AutoencoderKLQwenImage": ClipKind(),
    "AutoencoderKLWan": ClipKind(),
    "AutoencoderRAE": RepresentationKind(),
}
