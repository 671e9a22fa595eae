"""Latents kept in memory, so that a small data set is encoded once."""

from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor

from rfdit.autoencoder.contract import Moments
from rfdit.batch import Images
from rfdit.storage.lru import LRU


class LatentCache:
    """The moments of the latest images, by a hash of their shapes and bytes.

    For data sets that fit in memory, with the same crop every time: it reads every image on the CPU, for
    which a GPU has to wait.
    size: number of images; 0 disables the cache. Raises ValueError below 0.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"autoencoder.cache_size={size} must not be negative")
        self.size = size
        self._moments: LRU[bytes, Tensor] = LRU(size)

    def __call__(self, encode: Callable[[Images], Moments], images: Images) -> Moments:
        """`encode(images)`, with cached images looked up instead."""
        if self.size == 0:
            return encode(images)
        # Of two white images, one wide and one high, all bytes are the same.
        shape = str(images.shape[1:]).encode()
        pixels = images.numpy(force=True)
        keys = [blake2b(shape + image.tobytes(), digest_size=16).digest() for image in pixels]
        known = {key: self._moments[key] for key in keys if key in self._moments}
        missing = {key: i for i, key in enumerate(keys) if key not in known}
        if missing:
            new = encode(images[list(missing.values())])
            # Copies: one cached image must not keep the memory of its whole batch.
            known |= {key: moments.clone() for key, moments in zip(missing, new)}
        for key, moments in known.items():
            self._moments[key] = moments
        return torch.stack([known[key] for key in keys])
