"""Both halves of encoding in one go."""

from jaxtyping import Float
from torch import Tensor

from rfdit.autoencoder.contract import Autoencoder
from rfdit.randomness import SampleGenerator


def encode(
    autoencoder: Autoencoder, images: Tensor, *, generator: SampleGenerator | None = None
) -> Float[Tensor, "b c h w"]:
    """Images in [-1, 1] -> normalised latents."""
    return autoencoder.from_moments(autoencoder.moments(images), generator=generator)
