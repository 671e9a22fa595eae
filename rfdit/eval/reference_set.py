"""Statistics of the real images that generated ones are compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from rfdit.eval.features import FeatureNetwork
from rfdit.eval.moments import Moments


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is known of a reference set through one feature network.

    network, weights_sha256, resize, precision: of the network; None where a file from elsewhere does not say.
    data: where the images came from, in words.
    data_sha256: of the images' bytes as the network saw them, in order; of the file, for one from elsewhere.
    image_size: (height, width) of the images; None where a file from elsewhere does not say.
    moments: by the network's output.
    features: by the network's output, of the first images of the set or all of them, if they were kept.
    """

    network: str
    weights_sha256: str | None
    resize: str | None
    precision: str | None
    data: str
    data_sha256: str
    image_size: tuple[int, int] | None
    moments: Mapping[str, Moments]
    features: Mapping[str, Float[Tensor, "n d"]] = field(default_factory=dict)

    def check(self, network: FeatureNetwork, image_size: tuple[int, int], *, setting: str) -> None:
        """Raises ValueError if it was made with another network, other weights or for another image size.

        setting: the setting that named the reference, for the message. Warns of another resize or precision.
        """
        raise NotImplementedError

    def protocol(self) -> dict[str, str | int | list[int] | None]:
        """What a number that was computed with it must say: data, data_sha256, image_size, count, ..."""
        raise NotImplementedError
