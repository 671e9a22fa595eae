"""Image shapes of about one area, so that pictures need not all be cropped to one shape."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


class AspectBuckets:
    """The shapes that images are resized and cropped to, and which image takes which.

    As SDXL's (arXiv 2307.01952, sec. 2.3 and app. I): sides are multiples of `step`, no shape has more
    pixels than `resolution`, and each long side goes with the longest short one. Every shape is there
    upright and lying, and the largest square is always one of them.

    resolution: the area, as the side of a square or (height, width); that shape is one of the buckets.
    step: a multiple of autoencoder.downsampling x model.patch_size. Smaller ones make more buckets:
        resolution 256 has 3 at 64 and 5 at 32.
    max_aspect: longer side over shorter side of a bucket; longer images go to the longest.
    token: pixels per latent pixel, and latent pixels per token: `step` must be a multiple of the product.

    sizes: (height, width) of each bucket, the widest first.
    Raises ValueError for a step or an aspect ratio that leaves `resolution` itself out.
    """

    def __init__(
        self,
        *,
        resolution: int | Sequence[int],
        step: int = 64,
        max_aspect: float = 2.0,
        token: Sequence[int] = (1,),
    ) -> None:
        sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
        if step < 1:
            raise ValueError(f"data.buckets.step={step} must be at least 1 pixel")
        if step % math.prod(token):
            raise ValueError(
                f"data.buckets.step={step} is no multiple of {math.prod(token)}, the side of a token in pixels "
                "(autoencoder.downsampling x model.patch_size)"
            )
        if len(sides) != 2 or any(side < step or side % step for side in sides):
            raise ValueError(
                f"data.buckets.step={step} does not divide data.buckets.resolution={resolution}; "
                "both are sides in pixels, the resolution one or [height, width]"
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
        # Halfway between the logarithms. Roots and quotients are rounded alike on every machine,
        # logarithms are not, and all ranks must agree.
        self._borders = np.sqrt(ratios[1:] * ratios[:-1])

    def __len__(self) -> int:
        return len(self.sizes)

    def assign(self, image_sizes: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n"]:
        """For each (height, width) the number of the bucket whose logarithmic aspect ratio is nearest.

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
    """(height, width) of all buckets, by rising height over width."""
    side = math.isqrt(area) // step * step
    lying = []
    for width in range(side + step, area // step + 1, step):
        height = area // width // step * step
        if width / height > max_aspect:
            break
        lying.append((height, width))
    upright = [(width, height) for height, width in lying]
    return [*reversed(lying), (side, side), *upright]
