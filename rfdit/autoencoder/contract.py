"""The interface of autoencoders, and the contract that ties a checkpoint to one latent space."""

from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from rfdit.autoencoder.statistics import Statistic, as_plain, compared, from_plain, spread
from rfdit.batch import Images, Latent
from rfdit.randomness import SampleGenerator

Moments = Float[Tensor, "b m h w"]  # the output of an encoder, before normalisation
NUMBERS = ("scale", "shift")  # the fields that are a `Statistic`


@dataclass(frozen=True)
class LatentContract:
    """The latent space in which a model is trained; part of every checkpoint.

    name: the space (`sd`, `taesd`, ...), wherever the weights of its autoencoder were read from.
    channels: channels of a latent. downsampling: pixels per latent pixel, along one side.
    scale, shift: latents are `(raw - shift) * scale`, close to unit variance. Each is a number, or one for
        each channel, or one for each channel and position, of which a checkpoint keeps the digest.
    """

    name: str
    channels: int
    downsampling: int
    scale: Statistic
    shift: Statistic

    def normalise(self, raw: Latent) -> Latent:
        """(raw - shift) * scale: the latents of the autoencoder to those of the model."""
        return (raw - spread(self.shift, raw)) * spread(self.scale, raw)

    def denormalise(self, latents: Latent) -> Latent:
        """latents / scale + shift: the latents of the model to those of the autoencoder."""
        return latents / spread(self.scale, latents) + spread(self.shift, latents)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {name: as_plain(values[name]) for name in NUMBERS}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LatentContract":
        """The contract with the values of `as_dict`; raises ValueError for other names or types."""
        numbers = {name: from_plain(values.get(name)) for name in NUMBERS}
        kinds: dict[str, Any] = {field.name: field.type for field in fields(cls) if field.name not in NUMBERS}
        wrong = sorted(
            [name for name in numbers if numbers[name] is None]
            + [
                n
                for n in kinds.keys() | (values.keys() - numbers)
                if not isinstance(values.get(n), kinds.get(n, ()))
            ]
        )
        if wrong:
            names = ", ".join(wrong)
            raise ValueError(
                f"its latent space has fields that are missing, unknown or of a wrong type: {names}"
            )
        return cls(**values | numbers)

    def differences(self, other: "LatentContract") -> dict[str, tuple[Any, Any]]:
        """The fields that differ: name to (this, other), for numbers of channels the first that differs."""
        pairs = {
            field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
        }
        return {
            name: compared(*pair) if name in NUMBERS else pair
            for name, pair in pairs.items()
            if pair[0] != pair[1]
        }

    def check(self, trained: "LatentContract") -> None:
        """Raises ValueError for a model trained in another latent space, naming every field that differs."""
        differences = self.differences(trained)
        if differences:
            listed = ", ".join(
                f"{name} {theirs} (here {mine})" for name, (mine, theirs) in differences.items()
            )
            raise ValueError(
                f"the checkpoint was trained on latents of autoencoder={trained.name} with {listed}; "
                f"run it with autoencoder={trained.name}, or train anew for autoencoder={self.name}"
            )


@runtime_checkable
class Autoencoder(Protocol):
    """Images to latents and back. Not an `nn.Module`: its weights are never in a checkpoint.

    Encoding has two halves, since the result of the first can be cached: the latent of an image is
    `from_moments(moments(image))`, and training calls the second alone on cached moments.

    latent_channels, downsampling: an image of (3, H, W) becomes a latent of
        (latent_channels, H / downsampling, W / downsampling).
    contract: the latent space, with its normalisation.
    """

    latent_channels: int
    downsampling: int
    contract: LatentContract

    def moments(self, images: Images) -> Moments:
        """Images in [-1, 1] -> the output of the encoder, float32, on their device, without gradient.

        Means and log-variances (2c channels) where it gives distributions, else raw latents (c channels).
        This is the costly half of encoding, and deterministic, so that it can be cached.
        """
        ...

    def from_moments(self, moments: Moments, *, generator: SampleGenerator | None = None) -> Latent:
        """Moments of any floating dtype -> normalised latents, float32.

        generator: if moments are distributions, draws each latent from its own; without a generator, the
            latent is the mean.
        """
        ...

    def decode(self, latents: Latent) -> Images:
        """Normalised latents -> images in [-1, 1], float32, on their device, without gradient."""
        ...
