"""Statistics of the real images that generated ones are compared with."""

import warnings
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

    def check(
        self, network: FeatureNetwork, image_size: tuple[int, int], *, setting: str = "eval.reference"
    ) -> None:
        """Raises ValueError if it was made with another network, other weights or for another image size.

        setting: the setting that named the reference, for the message. Warns of another resize or precision.
        """
        if self.network != network.name:
            raise ValueError(
                f"{setting}: the reference was made with {self.network}, and the features are {network.name}'s; "
                "make one with python -m rfdit.eval.reference"
            )
        if self.weights_sha256 not in (None, network.sha256):
            raise ValueError(
                f"{setting}: the reference was made with weights {str(self.weights_sha256)[:12]} of {self.network}, "
                f"and network.weights has {network.sha256[:12]} (SHA-256); use the same file for both"
            )
        if self.image_size not in (None, image_size):
            raise ValueError(
                f"{setting}: the reference is of images of {_by(self.image_size)}, and those to measure have "
                f"{_by(image_size)}; make one with python -m rfdit.eval.reference resolution={image_size[0]}"
            )
        for what, made, now in (
            ("resize", self.resize, network.resize),
            ("precision", self.precision, network.precision),
        ):
            if made not in (None, now):
                warnings.warn(
                    f"{setting}: the reference was made with {what} {made!r}, and the network here has {now!r}",
                    stacklevel=2,
                )

    def moments_of(self, output: str, *, needed_by: str) -> Moments:
        """Raises ValueError, naming the metric, if they are not there."""
        if output not in self.moments:
            raise ValueError(
                f"{needed_by} needs the moments of {output}, and the reference ({self.data}) has those of "
                f"{', '.join(self.moments) or 'nothing'}"
            )
        return self.moments[output]

    def features_of(self, output: str, *, needed_by: str) -> Float[Tensor, "n d"]:
        """Raises ValueError, naming the metric, if they were not kept."""
        if output not in self.features:
            raise ValueError(
                f"{needed_by} compares images one by one and needs the features {output}, which the reference "
                f"({self.data}) has not kept; make one with python -m rfdit.eval.reference features=N"
            )
        return self.features[output]

    def protocol(self) -> dict[str, str | int | list[int] | None]:
        """What a number that was computed with it must say."""
        counts = [moments.count for moments in self.moments.values()]
        return {
            "data": self.data,
            "data_sha256": self.data_sha256,
            "images": counts[0] if counts else None,
            "image_size": None if self.image_size is None else list(self.image_size),
            "weights_sha256": self.weights_sha256,
            "resize": self.resize,
            "precision": self.precision,
            "features_kept": max(map(len, self.features.values()), default=0),
        }


def _by(size: tuple[int, int] | None) -> str:
    return "unknown size" if size is None else f"{size[0]} x {size[1]}"
