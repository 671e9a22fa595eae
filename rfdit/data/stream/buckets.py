"""Aspect-ratio buckets: image sizes of about the same area, so that less of an image is cropped away."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rfdit.images import parse_size
from rfdit.limits import AtLeastOne, Count, Size


class AspectBuckets:
    """The sizes to which images are resized and cropped, and the assignment of images to them.

    As in SDXL (arXiv 2307.01952, sec. 2.3 and app. I): sides are multiples of `step`, no bucket has more
    pixels than `resolution`, and each long side goes with the longest short side that fits. Every shape
    exists in portrait and landscape, and the largest square is always a bucket.

    resolution: the area, as the side of a square or (height, width); that size is one of the buckets.
    step: a multiple of autoencoder.downsampling x model.patch_size. Smaller steps make more buckets:
        resolution 256 has 3 at step 64 and 5 at step 32.
    max_aspect: largest ratio of longer to shorter side of a bucket; longer images go to the longest one.
    token: pixels per latent pixel, and latent pixels per token: `step` must be a multiple of the product.

    sizes: (height, width) of each bucket, the widest first.
    Raises ValueError for a step or an aspect ratio that leaves `resolution` itself out.
    """

    def __init__(
        self,
        *,
        resolution: Size,
        step: Count = 64,
        max_aspect: AtLeastOne = 2.0,
        token: Sequence[Count] = (1,),
    ) -> None:
        sides = parse_size(resolution, setting="data.buckets.resolution")
        if step < 1:
            raise ValueError(f"data.buckets.step={step} must be at least 1 pixel")
        if step % math.prod(token):
            raise ValueError(
                f"data.buckets.step={step} is not a multiple of {math.prod(token)}, the side of a token in pixels "
                "(autoencoder.downsampling x model.patch_size)"
            )
        if any(side < step or side % step for side in sides):
            raise ValueError(
                f"data.buckets.step={step} does not divide data.buckets.resolution={resolution}; "
                "both are in pixels"
            )
        if max(sides) / min(sides) > max_aspect:
            raise ValueError(
                f"data.buckets.max_aspect={max_aspect:g} must be at least "
                f"{max(sides) / min(sides):g}, the aspect ratio of data.buckets.resolution={resolution}"
            )
        self.step = step
        self.sizes = _shapes(math.prod(sides), step, max_aspect)
        heights, widths = np.array(self.sizes, dtype=np.float64).T
        ratios = heights / widths
        # Halfway between the logarithms: sqrt(r r'). Roots and quotients are rounded alike on every
        # machine, logarithms are not, and all ranks must agree.
        self._borders = np.sqrt(ratios[1:] * ratios[:-1])

    def __len__(self) -> int:
        return len(self.sizes)

    def assign(self, image_sizes: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n"]:
        """The number of each image's bucket: the nearest by the logarithm of height / width.

        Raises ValueError for an image without pixels.
        """
        empty = np.flatnonzero((image_sizes <= 0).any(axis=1))
        if len(empty):
            height, width = image_sizes[empty[0]].tolist()
            raise ValueError(
                f"image {empty[0]} is {height}x{width}: data.buckets needs the size of every image"
            )
        heights, widths = image_sizes.astype(np.float64).T
        return np.searchsorted(self._borders, heights / widths)


def _shapes(area: int, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """(height, width) of all buckets, by ascending height / width."""
    side = math.isqrt(area) // step * step
    landscape = []
    for width in range(side + step, area // step + 1, step):
        height = area // width // step * step
        if width / height > max_aspect:
            break
        landscape.append((height, width))
    portrait = [(width, height) for height, width in landscape]
    return [*reversed(landscape), (side, side), *portrait]
