"""What every autoencoder offers, and the facts that tie a checkpoint to one of them."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from rfdit.batch import Images, Latent
from rfdit.randomness import SampleGenerator

Moments = Float[Tensor, "b m h w"]  # what an encoder says of images, before normalisation


@dataclass(frozen=True)
class LatentContract:
    """The latent space a model is trained in; a checkpoint carries it.

    name: which autoencoder's space it is (`sd`, `taesd`, ...), wherever its weights were read from.
    channels: of a latent.
    downsampling: pixels per latent pixel, along one side.
    scale, shift: latents are `(raw - shift) * scale`, close to unit variance.
    """

    name: str
    channels: int
    downsampling: int
    scale: float
    shift: float

    def normalise(self, raw: Latent) -> Latent:
        """The autoencoder's own latents -> the model's."""
        return (raw - self.shift) * self.scale

    def denormalise(self, latents: Latent) -> Latent:
        """The model's latents -> the autoencoder's own."""
        return latents / self.scale + self.shift

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LatentContract":
        """What `as_dict` gave."""
        return cls(**values)

    def differences(self, other: "LatentContract") -> dict[str, tuple[Any, Any]]:
        """Field -> (this, other), for the fields that differ."""
        pairs = {
            field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def check(self, trained: "LatentContract") -> None:
        """Refuses a model that was trained in another latent space than this one.

        Raises ValueError, naming every field that differs.
        """
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
    """Images <-> latents. No `nn.Module`: its weights are never in a checkpoint.

    Encoding has two halves, since the first one's result can be cached: an image's latent is
    `from_moments(moments(image))`, and training does nothing else with cached moments.

    latent_channels, downsampling: an image of (3, H, W) becomes a latent of
        (latent_channels, H / downsampling, W / downsampling).
    contract: the latent space, with its normalisation.
    """

    latent_channels: int
    downsampling: int
    contract: LatentContract

    def moments(self, images: Images) -> Moments:
        """Images in [-1, 1] -> what the encoder says of them, float32, on their device, no gradient.

        Mean and log-variance, of 2c channels, where it gives a distribution, else the raw latent.
        This is the costly half of encoding, and the same whenever an image is seen: it can be cached.
        """
        ...

    def from_moments(self, moments: Moments, *, generator: SampleGenerator | None = None) -> Latent:
        """Moments, in any floating dtype -> normalised latents, float32.

        generator: where the moments are a distribution's, draws each sample's latent from it;
            without one the latent is the mean.
        """
        ...

    def decode(self, latents: Latent) -> Images:
        """Normalised latents -> images in [-1, 1], float32, on the latents' device, no gradient."""
        ...
